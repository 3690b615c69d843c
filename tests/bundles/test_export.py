"""Where `meld export` writes, what it replaces, and encoders that are linked instead."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusion.export.export import ExportConfig, export
from fusion.inference.checkpoint import read_checkpoint, write_checkpoint
from fusion.inference.load import ModelChoice
from pipeline.encoders.saved import write_encoders
from pipeline.errors import UsageError, WeightsMissing
from tests.conftest import Meld

pytestmark = pytest.mark.heavy


def test_a_folder_that_is_taken_is_refused_before_any_work(
    meld: Meld, graphs: Path, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model is loaded")

    monkeypatch.setattr("fusion.inference.predictor.Predictor.load", load)
    (tmp_path / "holiday.jpg").touch()
    for out, told in ((graphs, "holds a run; name another --out"), (tmp_path, "holds no run")):
        done = meld("export", text_run, "--out", out, "--onnx")
        assert (done.status, told in done.err) == (2, True), done.err
    done = meld("export", text_run, "--out", text_run, "--overwrite")
    assert "is needed and lies in" in done.err


def test_a_folder_in_which_no_encoder_can_be_written_is_refused(
    text_run: Path, tmp_path: Path
) -> None:
    """The tokeniser's library would end in a traceback, after all the work."""
    out = tmp_path / "caf\udce9"
    with pytest.raises(UsageError, match="a name that is no UTF-8"):
        export(ExportConfig(run=text_run, out=out))
    assert not out.exists()


def test_an_export_replaces_a_bundle_when_asked_and_nothing_of_the_users(
    text_bundle: Path, copied: Path
) -> None:
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        export(ExportConfig(run=text_bundle, out=copied))
    export(ExportConfig(run=text_bundle, out=copied, overwrite=True))
    assert (copied / "notes.txt").read_text() == "mine"
    ModelChoice(run=copied).load()


def test_an_export_into_a_folder_of_something_else_is_refused(
    text_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UsageError, match="holds no run of meld"):
        export(ExportConfig(run=text_bundle, out=tmp_path, overwrite=True))
    assert (tmp_path / "README.md").read_text() == "my project"


def test_linked_encoders_are_found_again_and_are_not_in_the_bundle(
    text_run: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "linked"
    config = ExportConfig(
        run=text_run, out=out, link_encoders=True, weights_dir=tiny_text_folder.parent
    )
    assert not (export(config).bundle / "encoders").exists()
    ModelChoice(run=out, weights_dir=tiny_text_folder.parent).load()
    with pytest.raises(WeightsMissing, match="--weights-dir"):
        ModelChoice(run=out).load()


def test_encoders_that_exist_in_one_run_alone_cannot_be_linked(
    text_run: Path, text_bundle: Path, tmp_path: Path
) -> None:
    predictor = ModelChoice(run=text_bundle).load()
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    encoders = dict(predictor.runtime.encoders.items())  # type: ignore[attr-defined]
    recipe = write_encoders(tuned, encoders, predictor.recipe, tuned=("text",))
    checkpoint = read_checkpoint(text_run)
    write_checkpoint(tuned, replace(checkpoint, recipe=recipe, finetuned=("text",)))
    with pytest.raises(UsageError, match="fine-tuned and exists in its run alone"):
        export(ExportConfig(run=tuned, out=tmp_path / "out", link_encoders=True))
    shipped = export(ExportConfig(run=tuned, out=tmp_path / "out")).bundle
    assert ModelChoice(run=shipped).load().recipe == recipe
