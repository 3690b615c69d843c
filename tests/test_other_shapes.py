"""JSON files that a run, an experiment or a store leaves, each value of which somebody may have
changed: they are read or refused in one line, and no reader fails in another way."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from fusion.experiments.ablation import read_ablation
from fusion.experiments.search_folder import Trained, read_trial, write_trial
from fusion.training.history import read_history
from pipeline.recipe import DecodeConfig
from pipeline.store.sources import ClipSource, read_plan, write_plan
from pipeline.store.store import StoreConfig
from tests.fusion.experiments.planted_scores import result
from tests.other_shapes import check_other_shapes

CELL = {
    "modalities": ["text", "audio"],
    "fusion": "late",
    "emotion_f1": [0.5, 0.6],
    "sentiment_f1": [0.6, 0.7],
    "emotion_interval": {"low": 0.4, "high": 0.7},
    "sentiment_interval": None,
}


def write_history(folder: Path) -> Path:
    (folder / "history.jsonl").write_text(json.dumps(asdict(result(0.5))))
    return folder / "history.jsonl"


def write_ablation(folder: Path) -> Path:
    (folder / "ablation.json").write_text(json.dumps({"split": "dev", "rows": [CELL]}))
    return folder / "ablation.json"


def write_one_trial(folder: Path) -> Path:
    write_trial(folder / "0123.json", Trained(best=(result(0.5),)))
    return folder / "0123.json"


def write_store_plan(folder: Path) -> Path:
    config = StoreConfig(root=folder, clips_per_shard=2, decode=DecodeConfig())
    config.folder("dev").mkdir(parents=True)
    source = ClipSource(dialogue_id=0, utterance_id=1, file="a.mp4", size_bytes=9, mtime_ns=8)
    write_plan("dev", config, [source])
    return config.folder("dev") / "plan.json"


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "history": (write_history, read_history),
    "ablation": (write_ablation, read_ablation),
    "trial": (write_one_trial, lambda file: read_trial(file, 1)),
    "store": (write_store_plan, lambda file: read_plan(file.parent)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_shape_are_refused(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    file = write(tmp_path)
    check_other_shapes(file, lambda: read(file))
