"""Choosing encoders by name: finds and hashes their weights, loads none of them.

So a stale cache is refused at once, and the process that only steers stays small.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.encoders import weights
from pipeline.encoders.saved import SavedEncoders, read_encoders
from pipeline.errors import UsageError
from pipeline.recipe import EncoderSpec, Precision
from pipeline.schema import Modality

WeightsChoice = Literal["pretrained", "random"]

AUDIO_ENCODERS = ("spectrogram",)
DEFAULT_ENCODERS: dict[Modality, str] = {
    "text": "bert-base-uncased",
    "video": "r3d_18",
    "audio": "spectrogram",
}
RANDOM_SEED = "seed 0"


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """An encoder and where its files lie. Only `spec` goes into the recipe."""

    spec: EncoderSpec
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """What the user asked for; None takes the default, or what `run` brings.

    text, video, audio: names as in `DEFAULT_ENCODERS`; text also takes another Hugging Face model
                  name, a folder, or "minilm" (bundled)
    text_layers:  hidden states to keep, 0 = embeddings, -1 = last; empty keeps all, as None does (a
                  learned mix of them is worth 1.7 points of weighted F1 on MELD's dev text, see
                  LOG.md)
    *_weights:    "random" gives untrained features, marked as such wherever they go; default
                  "pretrained"
    context:      previous utterances of the dialogue, with their speakers, that the text encoder
                  reads before the current one; default 0
    weights_dir:  looked at before the libraries' own caches
    run:          a fine-tuned run, whose own encoders are taken; whatever else is asked for must
                  be what they are
    """

    text: str | None = None
    video: str | None = None
    audio: str | None = None
    text_weights: WeightsChoice | None = None
    video_weights: WeightsChoice | None = None
    text_layers: tuple[int, ...] | None = None
    context: int | None = None
    weights_dir: Path | None = None
    run: Path | None = None

    def __post_init__(self) -> None:
        if self.video is not None:
            weights.check_video_encoder(self.video)
        if self.audio not in (None, *AUDIO_ENCODERS):
            raise UsageError(f"--audio {self.audio}: known are {', '.join(AUDIO_ENCODERS)}")
        if self.context is not None and self.context < 0:
            raise UsageError(f"--context: 0 or more utterances, not {self.context}")

    def given(self, modality: Modality) -> dict[str, Any]:
        """What was asked for of one modality's encoder: setting -> value."""
        named: dict[Modality, dict[str, Any]] = {
            "text": {
                "text": self.text,
                "text_weights": self.text_weights,
                "text_layers": self.text_layers,
                "context": self.context,
            },
            "video": {"video": self.video, "video_weights": self.video_weights},
            "audio": {"audio": self.audio},
        }
        return {name: value for name, value in named[modality].items() if value is not None}

    @classmethod
    def of(cls, spec: EncoderSpec, *, weights_dir: Path | None = None) -> "EncoderRequest":
        """Asks for the pretrained or random encoder that `spec` describes."""
        weights: WeightsChoice = "random" if spec.weights == "random" else "pretrained"
        if spec.modality == "text":
            return cls(
                text=spec.name,
                text_weights=weights,
                text_layers=spec.layers,
                context=spec.context,
                weights_dir=weights_dir,
            )
        if spec.modality == "video":
            return cls(video=spec.name, video_weights=weights, weights_dir=weights_dir)
        return cls(audio=spec.name)


def choose_encoder(
    modality: Modality,
    request: EncoderRequest,
    precision: Precision,
    *,
    check_files: bool = True,
) -> EncoderChoice:
    """Finds and hashes the weights.

    check_files: False believes what a fine-tuned run says of its files, without reading them

    Raises:
        UsageError: the text encoder has no such layer.
        WeightsMissing: the weights are not to be had.
        InputError, CacheCorrupt, MismatchError: what the fine-tuned run has is not its encoders.
    """
    if request.run is not None:
        saved = read_encoders(request.run)
        if check_files:
            saved.check_files(modality)
        return choose_saved(saved, modality)
    return {"text": _choose_text, "video": _choose_video, "audio": _choose_audio}[modality](
        request, precision
    )


def choose_saved(saved: SavedEncoders, modality: Modality) -> EncoderChoice:
    """A fine-tuned run's encoder, in the precision that it was tuned in: that is part of what it
    is. Its files are not looked at, see `SavedEncoders.check_files`.

    Raises InputError where the run has none of that modality.
    """
    return EncoderChoice(spec=saved.spec(modality), path=saved.path(modality))


def _choose_text(request: EncoderRequest, precision: Precision) -> EncoderChoice:
    name = asked = request.text or DEFAULT_ENCODERS["text"]
    if (Path(name) / "config.json").is_file():  # the hash tells which; a path says only where
        name = Path(name).resolve().name
    folder = weights.find_text_encoder(asked, request.weights_dir)
    choice = request.text_weights or "pretrained"
    num_layers = weights.count_layers(folder)
    layers = request.text_layers or tuple(range(num_layers))
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong:
        raise UsageError(f"text_layers: {name} has layers 0 to {num_layers - 1}, not {wrong[0]}")
    return EncoderChoice(
        spec=EncoderSpec(
            modality="text",
            name=name,
            weights=choice,
            weights_hash=_text_hash(folder, choice),
            pooling="mean over tokens",
            precision=precision,
            layers=layers,
            context=request.context or 0,
        ),
        path=folder,
    )


def _text_hash(folder: Path, choice: WeightsChoice) -> str:
    """Random weights still have a config and a tokenizer that decide values."""
    content = weights.hash_weights(folder)
    return content if choice == "pretrained" else f"{RANDOM_SEED}, {content}"


def _choose_video(request: EncoderRequest, precision: Precision) -> EncoderChoice:
    name = request.video or DEFAULT_ENCODERS["video"]
    choice = request.video_weights or "pretrained"
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
    return EncoderChoice(
        spec=EncoderSpec(
            modality="audio",
            name=request.audio or DEFAULT_ENCODERS["audio"],
            weights="none",
            weights_hash=RANDOM_SEED,
            pooling="statistics over time",
            precision="float32",  # a few milliseconds a clip; nothing to gain
        )
    )
