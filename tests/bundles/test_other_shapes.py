"""The JSON files of a bundle, each value of which somebody may have changed: a bundle that was
passed on is read or refused in one line, and no reader fails in another way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fusion.bundled
from fusion.export.export import card_of, reports_to_ship
from fusion.export.golden import read_golden
from fusion.inference.bundle import GRAPHS, check_files, read_export
from fusion.inference.description import read_description
from pipeline.encoders.saved import read_encoders
from pipeline.onnx.index import INDEX, OnnxIndex
from tests.other_shapes import check_other_shapes

BUNDLED = Path(fusion.bundled.__file__).parent / "meld-text"


def check_export(bundle: Path) -> None:
    exported = read_export(bundle)
    assert exported is not None
    check_files(bundle, exported)


def ship_reports(run: Path) -> None:
    config = json.loads((BUNDLED / "config.json").read_bytes())
    exported = {
        "run": "first",
        "encoders": "included",
        "gate": None,
        "pruned": None,
        "versions": {"meld": "1.0"},
    }
    card_of(run, "mine", config, reports_to_ship(run), exported)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_description,
    "export.json": check_export,
    "encoders/encoders.json": read_encoders,
    "golden/golden.json": read_golden,
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_another_shape_are_refused(name: str, copied: Path) -> None:
    check_other_shapes(copied / name, lambda: READERS[name](copied), every=3)


def test_an_index_of_graphs_of_another_shape_is_refused(graphs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(graphs / GRAPHS, tmp_path / "graphs"))
    check_other_shapes(folder / INDEX, lambda: OnnxIndex.read(folder))


def test_an_evaluation_of_another_shape_is_not_shipped(tmp_path: Path) -> None:
    file = Path(shutil.copy(BUNDLED / "evaluation-dev.json", tmp_path))
    check_other_shapes(file, lambda: ship_reports(tmp_path), every=13)
