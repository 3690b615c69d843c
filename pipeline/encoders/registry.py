"""Encoders by name: choosing one (driver: finds weights, hashes them) and building it (worker).

Choosing reads no weights into memory, so that a stale cache is refused at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.encoders import audio, text, video, weights
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, EncoderSpec, Precision
from pipeline.schema import Modality

WeightsChoice = Literal["pretrained", "random"]

VIDEO_ENCODERS = video.VIDEO_RESNETS
AUDIO_ENCODERS = ("spectrogram",)
RANDOM_SEED = "seed 0"


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """An encoder and where its files lie. Only `spec` goes into the recipe."""

    spec: EncoderSpec
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """What the user asked for.

    text:         a Hugging Face model name, a folder, or "minilm" (bundled)
    text_layers:  hidden states to keep, 0 = embeddings, -1 = last; empty keeps all
    *_weights:    "random" gives untrained features, marked as such wherever they go
    weights_dir:  looked at before the libraries' own caches
    """

    text: str = "bert-base-uncased"
    video: str = "r3d_18"
    audio: str = "spectrogram"
    text_weights: WeightsChoice = "pretrained"
    video_weights: WeightsChoice = "pretrained"
    text_layers: tuple[int, ...] = (-1,)
    weights_dir: Path | None = None


def choose_encoder(
    modality: Modality, request: EncoderRequest, precision: Precision
) -> EncoderChoice:
    """Finds and hashes the weights.

    Raises:
        UsageError: no encoder of that name.
        WeightsMissing: the weights are not to be had.
    """
    return {"text": _choose_text, "video": _choose_video, "audio": _choose_audio}[modality](
        request, precision
    )


def build_encoder(choice: EncoderChoice, decode: DecodeConfig | None) -> nn.Module:
    """The encoder in eval mode (frozen BatchNorm, no dropout), on the CPU."""
    spec = choice.spec
    if spec.modality == "text":
        assert choice.path is not None
        return text.build_text_encoder(
            choice.path, spec.layers, spec.precision, pretrained=spec.weights == "pretrained"
        )
    if spec.modality == "video":
        return video.build_video_encoder(spec.name, choice.path, spec.precision)
    assert decode is not None
    return audio.build_audio_encoder(decode.sample_rate_hz)


def native_precision(device: Literal["cpu", "cuda"]) -> Precision:
    """bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.cpu.get_capabilities()
    return "bfloat16" if features.get("avx512_bf16") or features.get("amx_bf16") else "float32"


def _choose_text(request: EncoderRequest, precision: Precision) -> EncoderChoice:
    name = request.text
    folder = weights.find_text_encoder(name, request.weights_dir)
    choice = request.text_weights
    num_layers = text.count_layers(folder)
    layers = request.text_layers or tuple(range(num_layers))
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong:
        raise UsageError(f"text_layers: {name} has layers 0 to {num_layers - 1}, not {wrong[0]}")
    return EncoderChoice(
        spec=EncoderSpec(
            modality="text",
            name=name,
            weights=choice,
            weights_hash=weights.hash_weights(folder) if choice == "pretrained" else RANDOM_SEED,
            pooling="mean over tokens",
            precision=precision,
            layers=layers,
        ),
        path=folder,
    )


def _choose_video(request: EncoderRequest, precision: Precision) -> EncoderChoice:
    name = request.video
    if name not in VIDEO_ENCODERS:
        raise UsageError(f"--video {name}: known are {', '.join(VIDEO_ENCODERS)}")
    choice = request.video_weights
    path = None
    if choice == "pretrained":
        path = weights.find_video_weights(name, request.weights_dir)
    return EncoderChoice(
        spec=EncoderSpec(
            modality="video",
            name=name,
            weights=choice,
            weights_hash=weights.hash_weights(path) if path else RANDOM_SEED,
            pooling="global average",
            precision=precision,
        ),
        path=path,
    )


def _choose_audio(request: EncoderRequest, precision: Precision) -> EncoderChoice:
    name = request.audio
    if name not in AUDIO_ENCODERS:
        raise UsageError(f"--audio {name}: known are {', '.join(AUDIO_ENCODERS)}")
    return EncoderChoice(
        spec=EncoderSpec(
            modality="audio",
            name=name,
            weights="none",
            weights_hash=RANDOM_SEED,
            pooling="statistics over time",
            precision="float32",  # a few milliseconds a clip; nothing to gain
        )
    )
