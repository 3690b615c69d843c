"""Models of speech: against the library's own feature extractors and models, on tiny ones."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.find import find_encoders
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.encoders.speech import SpeechEncoder
from pipeline.errors import MismatchError, UsageError, WeightsMissing
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import ClipFeatures, ClipKey, DecodedClip, Utterance

WIDTH, LAYERS = 16, 2
FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}
Made = tuple[Path, Any]


def make(kind: str, folder: Path, **changes: Any) -> Made:
    """A folder as the hub has them, and its model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "whisper":
            extractor: Any = WhisperFeatureExtractor(feature_size=80)
            model: Any = WhisperModel(
                WhisperConfig(
                    d_model=WIDTH,
                    encoder_layers=changes.pop("encoder_layers", LAYERS),
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    encoder_ffn_dim=24,
                    decoder_ffn_dim=24,
                    vocab_size=60,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    decoder_start_token_id=3,
                )
            )
        else:
            config, net = FAMILIES[kind]
            extractor = Wav2Vec2FeatureExtractor(do_normalize=changes.pop("normalises", True))
            model = net(
                config(
                    hidden_size=WIDTH,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=2,
                    intermediate_size=24,
                    conv_dim=(8,) * 7,
                    num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=4,
                    **changes,
                )
            )
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("speech")
    return {kind: make(kind, root / kind) for kind in (*FAMILIES, "whisper")}


def voice(samples: int, seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(0, 0.05, samples)
    tone = 0.3 * np.sin(2 * np.pi * 180 * np.arange(samples) / 16_000)
    return (noise + tone + 0.02).astype(np.float32)


def clip_of(waveform: NDArray[np.float32] | None, row: int = 0) -> DecodedClip:
    return DecodedClip(
        utterance=Utterance(key=ClipKey("train", 0, row), text=""), waveform=waveform
    )


def choose(folder: Path, **request: Any) -> EncoderChoice:
    return choose_encoder("audio", EncoderRequest(audio=str(folder), **request), "float32")


def encode(choice: EncoderChoice, *waveforms: NDArray[np.float32]) -> list[ClipFeatures]:
    clips = [clip_of(waveform, row) for row, waveform in enumerate(waveforms)]
    return encode_clips(Encoders([choice], DecodeConfig()), clips)


def by_the_library(folder: Path, model: Any, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """[layers, dim]"""
    kind = model.config.model_type
    extractor: Any = WhisperFeatureExtractor if kind == "whisper" else Wav2Vec2FeatureExtractor
    ready = extractor.from_pretrained(folder)(
        waveform, sampling_rate=16_000, return_tensors="pt", return_attention_mask=False
    )
    with torch.inference_mode():
        if kind == "whisper":
            hidden = model.encoder(ready.input_features, output_hidden_states=True).hidden_states
            hidden = [each[:, : math.ceil(len(waveform) / 320)] for each in hidden]
        else:
            hidden = model(ready.input_values, output_hidden_states=True).hidden_states
    return np.stack([each[0].mean(0).numpy() for each in hidden])


@pytest.mark.parametrize("kind", [*FAMILIES, "whisper"])
def test_features_are_the_means_of_the_librarys_own_hidden_states(
    made: dict[str, Made], kind: str
) -> None:
    folder, model = made[kind]
    waveforms = [voice(9_000), voice(400, 1), voice(23_456, 2), voice(9_000, 3)]
    for found, waveform in zip(encode(choose(folder), *waveforms), waveforms, strict=True):
        assert found.raw["audio"].shape == (LAYERS + 1, WIDTH)
        np.testing.assert_allclose(
            found.raw["audio"], by_the_library(folder, model, waveform), atol=2e-4
        )


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
@pytest.mark.parametrize("samples", [0, 1, 399])
def test_too_short_a_sound_is_absent_with_its_reason(
    made: dict[str, Made], kind: str, samples: int
) -> None:
    short, none = encode_clips(
        Encoders([choose(made[kind][0])], DecodeConfig()), [clip_of(voice(samples)), clip_of(None)]
    )
    assert short.raw == none.raw == {}
    [failure] = short.failures
    assert (failure.code, failure.lost) == ("nothing_to_encode", True)
    assert failure.message == "its sound is shorter than 400 samples"
    assert none.failures == ()


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_silence_and_extremes_are_finite(made: dict[str, Made], kind: str) -> None:
    loud = np.sign(voice(8_000)).astype(np.float32)
    rows = encode(choose(made[kind][0]), np.zeros(8_000, np.float32), loud, 1e-6 * loud)
    assert all(np.isfinite(row.raw["audio"]).all() and row.failures == () for row in rows)


def test_whisper_reads_what_is_longer_than_30_s_in_pieces(made: dict[str, Made]) -> None:
    folder, model = made["whisper"]
    half_minute = voice(480_000)
    exact, one_more, longer = encode(
        choose(folder, audio_layers=(-1,)),
        half_minute,
        np.append(half_minute, np.float32(0.5)),
        np.append(half_minute, voice(16_000, 4)),
    )
    whole = by_the_library(folder, model, half_minute)[-1]
    np.testing.assert_allclose(exact.raw["audio"][0], whole, atol=2e-4)
    np.testing.assert_array_equal(one_more.raw["audio"], exact.raw["audio"])
    second = by_the_library(folder, model, voice(16_000, 4))[-1]
    wanted = (1500 * whole + 50 * second) / 1550
    np.testing.assert_allclose(longer.raw["audio"][0], wanted, atol=2e-4)


def test_a_model_that_was_trained_on_raw_waveforms_gets_them(tmp_path: Path) -> None:
    folder, model = make("wav2vec2", tmp_path / "raw", normalises=False)
    [quiet] = encode(choose(folder), 0.1 * voice(5_000))
    wanted = by_the_library(folder, model, 0.1 * voice(5_000))
    np.testing.assert_allclose(quiet.raw["audio"], wanted, atol=2e-4)


def test_layers_are_chosen_and_wrong_ones_are_refused(made: dict[str, Made]) -> None:
    folder, _ = made["hubert"]
    [every], [some] = (
        encode(choose(folder, **asked), voice(4_000)) for asked in ({}, {"audio_layers": (0, -1)})
    )
    np.testing.assert_array_equal(some.raw["audio"], every.raw["audio"][[0, -1]])
    with pytest.raises(UsageError, match=r"audio_layers: \./hubert has layers 0 to 2, not 7"):
        choose(folder, audio_layers=(7,))


def test_the_recipe_names_the_folder_and_finds_it_again(made: dict[str, Made]) -> None:
    folder, _ = made["wavlm"]
    choice = choose(folder)
    assert (choice.spec.name, choice.spec.weights) == ("./wavlm", "pretrained")
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=DecodeConfig())
    [found] = find_encoders(recipe, ("audio",), weights_dir=folder.parent)
    assert found.spec == choice.spec


def test_random_weights_are_marked_and_refused_where_there_are_none(made: dict[str, Made]) -> None:
    choice = choose(made["wav2vec2"][0], audio_weights="random")
    assert choice.spec.is_random
    [one], [other] = encode(choice, voice(3_000)), encode(choice, voice(3_000))
    np.testing.assert_array_equal(one.raw["audio"], other.raw["audio"])
    with pytest.raises(UsageError, match="prosody has no trained weights"):
        choose_encoder("audio", EncoderRequest(audio="prosody", audio_weights="random"), "float32")


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_the_model_learns_and_the_run_saves_it(
    made: dict[str, Made], tmp_path: Path, kind: str
) -> None:
    choice = choose(made[kind][0])
    encoders = Encoders([choice], DecodeConfig())
    encoder = encoders["audio"]
    assert isinstance(encoder, SpeechEncoder)
    batch = encoder.preparation.collate(encoder.preparation.prepare([clip_of(voice(6_000))]))
    encoder(batch).square().sum().backward()
    depths, learning = encoder.layer_depths(), dict(encoder.named_parameters())
    assert sorted(set(depths.values())) == [0, 1, 2]
    assert all(learning[path].grad is not None for path in depths)
    with torch.no_grad():
        for path in depths:
            learning[path].mul_(1.01)
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=DecodeConfig())
    write_encoders(tmp_path, dict(encoders.items()), recipe, ["audio"])
    again = Encoders([choose_saved(read_encoders(tmp_path), "audio")], DecodeConfig())["audio"]
    with torch.inference_mode():
        torch.testing.assert_close(again(batch), encoder(batch))


@pytest.mark.parametrize("kind", [*FAMILIES, "whisper"])
def test_in_training_no_layer_is_left_out_and_nothing_is_masked(kind: str, tmp_path: Path) -> None:
    """A layer that is left out has no features, and the library draws its masks from NumPy's global
    generator: the same seed would train another model."""
    folder, _ = make(kind, tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"layerdrop": 1.0, "encoder_layerdrop": 1.0, "mask_time_prob": 0.9}
    config |= {name: 0.0 for name in config if name.endswith("dropout")}
    path.write_text(json.dumps(config))
    encoder = Encoders([choose(folder)], DecodeConfig())["audio"]
    assert isinstance(encoder, SpeechEncoder)
    batch = encoder.preparation.collate(encoder.preparation.prepare([clip_of(voice(40_000))]))
    wanted = encoder(batch)
    encoder.train()
    torch.testing.assert_close(encoder(batch), wanted)


@pytest.mark.parametrize("kind", ["nothing", "no model", "lacking"])
def test_a_folder_that_is_no_whole_model_is_refused_in_a_line(
    made: dict[str, Made], tmp_path: Path, kind: str
) -> None:
    source = made["wav2vec2"][0]
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    if kind != "nothing":
        content = (source / "model.safetensors").read_bytes()
        if kind == "no model":
            content = b"no safetensors"
        (tmp_path / "model.safetensors").write_bytes(content)
    if kind == "lacking":
        config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="no usable speech model") as caught:
        encode(choose(tmp_path), voice(1_000))
    assert "\n" not in str(caught.value)


def test_other_rates_and_unknown_names_are_refused(
    made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MismatchError, match="hears 16000 Hz; the clips are at 8000 Hz"):
        Encoders([choose(made["wav2vec2"][0])], DecodeConfig(sample_rate_hz=8_000))
    with pytest.raises(UsageError, match="cochlea: unknown; known are spectrogram, prosody, wav2v"):
        EncoderRequest(audio="cochlea")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissing, match=r"facebook/wav2vec2-base: .*--audio FOLDER"):
        choose_encoder("audio", EncoderRequest(audio="wav2vec2-base"), "float32")
