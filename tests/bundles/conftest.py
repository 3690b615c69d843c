"""A run on words alone, and what is exported of it: made once, and not to be written to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.export.export import ExportConfig, export
from tests.conftest import MadeOnce
from tests.runs import write_run_of_words


@pytest.fixture(scope="module", autouse=True)
def few_timed_clips(tiny_graphs_are_quantised: None) -> Iterator[None]:
    """How fast something is does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.export.gate.TIMED_CLIPS", 3)
        yield


@pytest.fixture(scope="session")
def text_run(tiny_text_folder: Path, made_once: MadeOnce) -> Path:
    def make(folder: Path) -> Path:
        write_run_of_words(folder, tiny_text_folder)
        return folder

    return made_once("words", make)


@pytest.fixture(scope="session")
def text_bundle(text_run: Path, tiny_text_folder: Path, made_once: MadeOnce) -> Path:
    def make(folder: Path) -> Path:
        config = ExportConfig(run=text_run, out=folder, weights_dir=tiny_text_folder.parent)
        return export(config).bundle

    return made_once("words-bundle", make)


@pytest.fixture(scope="session")
def graphs(text_run: Path, tiny_text_folder: Path, made_once: MadeOnce) -> Path:
    """The same bundle with ONNX graphs, whose tracing takes seconds."""

    def make(folder: Path) -> Path:
        weights_dir = tiny_text_folder.parent
        config = ExportConfig(run=text_run, out=folder, onnx=True, weights_dir=weights_dir)
        return export(config).bundle

    return made_once("words-graphs", make)


@pytest.fixture
def copied(text_bundle: Path, tmp_path: Path) -> Path:
    """Of `text_bundle`: to be changed."""
    return Path(shutil.copytree(text_bundle, tmp_path / "copied"))
