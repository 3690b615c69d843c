"""Graphs of small encoders, written once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.encode import Encoders
from pipeline.encoders.encoder import EncoderWish
from pipeline.encoders.registry import find_entry
from pipeline.onnx.write import write_encoder_graphs
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality

DECODE = DecodeConfig(num_frames=4, frame_height=112, frame_width=121)


def load_encoders(*wishes: tuple[Modality, EncoderWish]) -> Encoders:
    choices = [find_entry(modality, wish.name).choose(wish, "float32") for modality, wish in wishes]
    return Encoders(choices, DECODE)


@pytest.fixture(scope="session")
def text_and_sound(tiny_text_folder: Path) -> Encoders:
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    return load_encoders(
        ("text", EncoderWish(name=str(tiny_text_folder), layers=(0, -1))),
        ("audio", EncoderWish(name="spectrogram")),
    )


@pytest.fixture(scope="session")
def graphs(text_and_sound: Encoders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("graphs")
    write_encoder_graphs(text_and_sound, folder)
    return folder


@pytest.fixture
def copy_graphs(graphs: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy, to be damaged."""
    return lambda: Path(shutil.copytree(graphs, tmp_path / "graphs"))
