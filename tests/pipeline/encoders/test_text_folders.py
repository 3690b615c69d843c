"""Folders of text encoders: how they are found and hashed, and refused where not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.encoders import weights
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.registry import build_encoder
from pipeline.errors import MismatchError
from pipeline.recipe import DecodeConfig
from tests.pipeline.encoders.inputs import one_line

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


@pytest.fixture
def text_folder(tiny_text_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(tiny_text_folder, tmp_path / "encoder"))


def _drop(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return apply


def _change_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Any:
    def apply(folder: Path) -> None:
        state = change(load_file(folder / "model.safetensors"))
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return apply


def _with_nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state["embeddings.LayerNorm.weight"][3] = float("nan")
    return state


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def _pickled_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


BROKEN_TEXT: dict[str, Callable[[Path], None]] = {
    "no weights": _drop("model.safetensors"),
    "weights cut off": _truncate,
    "weights pickled": _pickled_only,
    "no tokenizer": _drop(*TOKENIZER_FILES),
    "no vocabulary": _drop("tokenizer.json", "vocab.txt"),
    "tokenizer cut off": lambda folder: (folder / "tokenizer.json").write_text("{") and None,
    "other names": _change_weights(
        lambda state: {f"other.{name}": value for name, value in state.items()}
    ),
    "a layer missing": _change_weights(
        lambda state: {name: value for name, value in state.items() if "layer.1" not in name}
    ),
    "other shapes": _change_weights(
        lambda state: {name: value[:7].clone() for name, value in state.items()}
    ),
    "not finite": _change_weights(_with_nan),
}


@pytest.mark.parametrize("what", BROKEN_TEXT)
def test_a_text_folder_that_is_not_whole_is_refused(text_folder: Path, what: str) -> None:
    """transformers builds many of these with random weights or an empty vocabulary."""
    BROKEN_TEXT[what](text_folder)
    choice = choose_encoder("text", EncoderRequest(text=str(text_folder)), "float32")
    with pytest.raises(MismatchError) as caught:
        build_encoder(choice, DecodeConfig())
    one_line(caught, text_folder)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"num_hidden_layers": "x"}', "null"])
def test_a_config_that_is_none_is_refused_when_choosing(text_folder: Path, config: str) -> None:
    (text_folder / "config.json").write_text(config)
    with pytest.raises(MismatchError) as caught:
        choose_encoder("text", EncoderRequest(text=str(text_folder)), "float32")
    one_line(caught, text_folder)


def test_a_model_type_nobody_knows_is_refused(text_folder: Path) -> None:
    """Nor is code run that comes with the folder."""
    config = {"model_type": "novel", "num_hidden_layers": 2, "auto_map": {"AutoModel": "run.It"}}
    (text_folder / "config.json").write_text(json.dumps(config))
    (text_folder / "run.py").write_text(f"open({str(text_folder / 'ran')!r}, 'w')\n")
    with pytest.raises(MismatchError) as caught:
        build_encoder(
            choose_encoder("text", EncoderRequest(text=str(text_folder)), "float32"), None
        )
    one_line(caught, text_folder)
    assert not (text_folder / "ran").exists()


def test_a_folder_is_found_by_path_and_by_name_under_weights_dir(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path = EncoderRequest(text=str(text_folder))
    by_name = EncoderRequest(text=text_folder.name, weights_dir=text_folder.parent)
    assert choose_encoder("text", by_path, "float32").path == text_folder
    assert choose_encoder("text", by_name, "float32").path == text_folder
    (text_folder.parent / "someone--theirs").symlink_to(text_folder)
    hub_name = EncoderRequest(text="someone/theirs", weights_dir=text_folder.parent)
    assert (
        choose_encoder("text", hub_name, "float32").path == text_folder.parent / "someone--theirs"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_hash_covers_weights_tokenizer_and_config(text_folder: Path, name: str) -> None:
    before = weights.hash_weights(text_folder)
    assert before == weights.hash_weights(text_folder)
    (text_folder / "README.md").write_text("Words about the model change nothing.")
    assert weights.hash_weights(text_folder) == before
    path = text_folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert weights.hash_weights(text_folder) != before
