"""Chooses encoders by name: finds and hashes their weights without loading them.

So a cache with another recipe is refused at once, and the driver process stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.encoders.encoder import EncoderChoice, EncoderWish, WeightsChoice
from pipeline.encoders.registry import find_entry
from pipeline.encoders.saved import SavedEncoders, read_encoders
from pipeline.encoders.several_names import check_once
from pipeline.errors import UsageError
from pipeline.recipe import DialogueReading, Precision
from pipeline.schema import MEDIA, MODALITIES, Modality

DEFAULT_ENCODERS: dict[Modality, str] = {
    "text": "bert-base-uncased",
    "video": "r3d_18",
    "audio": "spectrogram",
}
# Modalities whose encoders have trained weights, nearly all: those that `--weights random` means.
ALWAYS_TRAINED: tuple[Modality, ...] = ("text", "video")


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """Which encoders to use; None takes the default, or what `run` has.

    text:         "bert-base-uncased", which None takes, another Hugging Face model name, a folder,
                  or "minilm" (bundled); or word vectors: "glove" (bundled), "glove:FILE",
                  "word2vec:FILE"
    video:        "r3d_18", which None takes, "mc3_18" or "r2plus1d_18", "faces", or an image
                  net of torchvision's ("resnet18", "resnet50", "vgg16", ...)
    audio:        "spectrogram", which None takes, "prosody", or a model of speech:
                  "wav2vec2-base", "hubert-base", "wavlm-base", "wavlm-base-plus",
                  "whisper-tiny.en", another Hugging Face name, or a folder; of each modality also
                  several encoders, joined by commas: "spectrogram,prosody"
    text_weights, video_weights, audio_weights: "pretrained", or "random" for untrained features,
                  which every output marks; None takes pretrained
    text_layers, audio_layers: hidden states to keep, 0 = embeddings, -1 = last; empty keeps all, as
                  None does (a learned mix of them is worth 1.7 points of weighted F1 on MELD's dev
                  text, see LOG.md)
    context:      number of previous utterances of the dialogue, with their speakers, that the text
                  encoder reads before the current one; or "dialogue": it reads the dialogue as a
                  whole, each token once; None takes 0
    future:       with context "dialogue": an utterance is read with what follows it as well
    weights_dir:  folder that is searched for pretrained weights before the libraries' caches
    run:          fine-tuned run whose encoders are used; the other settings must agree with them
    """

    text: str | None = None
    video: str | None = None
    audio: str | None = None
    text_weights: WeightsChoice | None = None
    video_weights: WeightsChoice | None = None
    audio_weights: WeightsChoice | None = None
    text_layers: tuple[int, ...] | None = None
    audio_layers: tuple[int, ...] | None = None
    context: int | Literal["dialogue"] | None = None
    future: bool = False
    weights_dir: Path | None = None
    run: Path | None = None

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            wish = self.wish(modality)
            if wish.weights == "random" and not find_entry(modality, wish.name).has_weights:
                raise UsageError(
                    f"--weights {modality}=random: {wish.name} has no trained weights; leave it out"
                )
            find_entry(modality, wish.name)
            check_once(modality, wish.name)
        if isinstance(self.context, int) and self.context < 0:
            raise UsageError(f"--context: 0 or more utterances, not {self.context}")
        if self.context not in (None, "dialogue") and not isinstance(self.context, int):
            raise UsageError(f"--context: a number of utterances or dialogue, not {self.context}")
        if self.future and self.context != "dialogue":
            raise UsageError(
                "--future: it is the rest of the dialogue; ask for --context dialogue with it"
            )

    def given(self, modality: Modality) -> dict[str, Any]:
        """The settings that were given for one modality's encoder: setting -> value."""
        names = [modality, f"{modality}_weights", f"{modality}_layers"]
        names += [] if modality in MEDIA else ["context"]
        values = {name: getattr(self, name, None) for name in names}
        if modality not in MEDIA and self.context == "dialogue":
            values["future"] = self.future
        return {name: value for name, value in values.items() if value is not None}

    def wish(self, modality: Modality) -> EncoderWish:
        """The same settings, completed by defaults."""
        asked = self.given(modality)
        context: int | str = asked.get("context", 0)
        reading: DialogueReading = "whole" if self.future else "past"
        return EncoderWish(
            name=asked.get(modality, DEFAULT_ENCODERS[modality]),
            weights=asked.get(f"{modality}_weights", "pretrained"),
            layers=asked.get(f"{modality}_layers", ()),
            context=context if isinstance(context, int) else 0,
            dialogue=reading if context == "dialogue" else "none",
            weights_dir=self.weights_dir,
        )


def choose_encoder(
    modality: Modality,
    request: EncoderRequest,
    precision: Precision,
    *,
    check_files: bool = True,
) -> EncoderChoice:
    """Finds and hashes the weights.

    check_files: False trusts the recorded hashes of a fine-tuned run without reading its files

    Raises:
        UsageError: the text encoder has no such layer.
        WeightsMissing: the weights are missing.
        InputError, CacheCorrupt, MismatchError: the fine-tuned run's encoders are missing, damaged
        or changed.
    """
    if request.run is not None:
        saved = read_encoders(request.run)
        if check_files:
            saved.check_files(modality)
        return choose_saved(saved, modality)
    wish = request.wish(modality)
    return find_entry(modality, wish.name).choose(wish, precision)


def choose_saved(saved: SavedEncoders, modality: Modality) -> EncoderChoice:
    """A fine-tuned run's encoder, in the precision of its fine-tuning, which is part of its spec.
    Its files are not looked at, see `SavedEncoders.check_files`.

    Raises InputError where the run has none of that modality.
    """
    return EncoderChoice(spec=saved.spec(modality), path=saved.path(modality))


def compute_in(choices: Sequence[EncoderChoice], precision: Precision) -> tuple[EncoderChoice, ...]:
    """The same encoders in another precision, for features that no cache has. An encoder that has
    one precision only keeps it.

    Raises UsageError where that would change none of them, or one is fine-tuned: its precision is
    part of what it is.
    """
    chosen = []
    for choice in choices:
        spec = choice.spec
        if precision == spec.precision or not find_entry(spec.modality, spec.name).autocast:
            chosen.append(choice)
        elif spec.weights == "finetuned":
            raise UsageError(
                f"--precision {precision}: the {spec.modality} encoder was fine-tuned in "
                f"{spec.precision}; leave it out"
            )
        else:
            chosen.append(replace(choice, spec=replace(spec, precision=precision)))
    if all(choice.spec.precision != precision for choice in chosen):
        names = ", ".join(choice.spec.name for choice in chosen)
        raise UsageError(
            f"--precision {precision}: {names} knows {chosen[0].spec.precision} only; leave it out"
        )
    return tuple(chosen)
