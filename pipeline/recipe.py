"""The recipe: everything that decides the values in a feature cache, and its fingerprint.

Workers, device, batch size and paths are not in here: they must not change what is stored
(beyond float rounding, see README). Everything else that can change a number is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import MEDIA, MODALITIES, Modality

# Raised by hand whenever our own code changes the values it makes from the same input.
REVISION = 4

Precision = Literal["float32", "bfloat16"]
WeightsKind = Literal["pretrained", "random", "none", "finetuned", "foreign"]
ChannelPolicy = Literal["front_centre", "downmix"]
TestClips = Literal["fixed", "legacy"]
DialogueReading = Literal["none", "past", "whole"]
FrameFit = Literal["stretch", "crop", "pad"]
# The rules of `DecodeConfig.channel` in a line each.
CHANNEL_RULES: Mapping[ChannelPolicy, str] = {
    "front_centre": "the front centre of surround sound, else the mean of what has sound",
    "downmix": "the mean of all channels that have sound",
}


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """The size of the frames that an encoder wants; fit: as `frame_fit` of `DecodeConfig`.

    Raises ValueError.
    """

    height: int
    width: int
    fit: FrameFit

    def __post_init__(self) -> None:
        if self.fit not in get_args(FrameFit):
            raise ValueError(f"frame_fit must be one of {get_args(FrameFit)}, not {self.fit!r:.80}")
        for name, value in (("frame_height", self.height), ("frame_width", self.width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def __str__(self) -> str:
        return f"{self.height}x{self.width} ({self.fit})"


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Which media file is read, and how it becomes frames and a waveform.

    Frames are spread evenly over the utterance by presentation time and scaled to
    `frame_height` x `frame_width` (the video encoder's preset, before its crop).
    `frame_fit`: how a picture of another shape gets that size. "stretch" scales its height and its
    width each for itself; "crop" keeps its shape, and what stands out at both sides is left out;
    "pad" keeps its shape and fills up with black.
    `more_views`: the sizes that further encoders want of the same frames. Where there are some, the
    pixels of all views of a frame lie one after another, and a frame has the height of their
    number and the width of one pixel (`frame_shape`, `take_view`).
    `channel`: MELD's sound is 5.1 in 88 % of its clips, and there the front centre carries the
    dialogue. "front_centre" takes it of all sound of more than two channels that has one (5.1, 7.1,
    5.0, 3.0, ...), unless it is silent from the file's start to the span's end while others are
    not (a warning, "silent_centre"). All else is averaged, as "downmix" averages everything:
    mono, stereo, quad, and channels of which nobody says what they are (16 tracks of a recorder).
    The mean is that of the channels that have sound: one that is 40 dB below the loudest for the
    whole span only makes the others softer. Where the channels cancel each other out (opposite
    phase), the first of the loudest is taken alone (a warning, "opposite_phase").
    Only the first `max_duration_s` seconds count: MELD has mis-cut clips of up to 305 s.
    `test_clips`: 132 of MELD's test clips exist twice. "fixed" reads the corrected cuts
    (`final_videos_test*`), "legacy" the plain names, as most published numbers did.
    """

    num_frames: int = 16
    frame_height: int = 128
    frame_width: int = 171
    sample_rate_hz: int = 16_000
    channel: ChannelPolicy = "front_centre"
    max_duration_s: float = 30.0
    test_clips: TestClips = "fixed"
    frame_fit: FrameFit = "stretch"
    more_views: tuple[FrameView, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"each view of a frame once, not {', '.join(map(str, self.views))}")
        for name in ("num_frames", "sample_rate_hz"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.max_duration_s <= 600:
            raise ValueError(f"max_duration_s must be in (0, 600], not {self.max_duration_s}")
        # 30 and 30.0 are equal and must have one fingerprint.
        object.__setattr__(self, "max_duration_s", float(self.max_duration_s))

    @property
    def views(self) -> tuple[FrameView, ...]:
        first = FrameView(height=self.frame_height, width=self.frame_width, fit=self.frame_fit)
        return (first, *self.more_views)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """height, width, 3 of a decoded frame."""
        if not self.more_views:
            return (self.frame_height, self.frame_width, 3)
        return (sum(view.height * view.width for view in self.views), 1, 3)

    def of_view(self, view: FrameView) -> "DecodeConfig":
        """The same clips in one view alone."""
        return dataclasses.replace(
            self,
            frame_height=view.height,
            frame_width=view.width,
            frame_fit=view.fit,
            more_views=(),
        )

    def take_view(self, frames: NDArray[np.uint8], view: FrameView) -> NDArray[np.uint8]:
        """uint8 [num_frames, *frame_shape] -> [num_frames, height, width, 3], without a copy.

        Raises ValueError where clips are not decoded in that view.
        """
        if not self.more_views and view in self.views:
            return frames
        at = self.views.index(view)
        start = sum(each.height * each.width for each in self.views[:at])
        pixels = frames[:, start : start + view.height * view.width]
        return pixels.reshape(len(frames), view.height, view.width, 3)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One frozen encoder, as far as it decides values.

    weights:      "pretrained", "random" (asked for by name: features are not meaningful by
                  themselves), "none" (the encoder has no trained weights: `spectrogram`),
                  "finetuned", or "foreign": another tool made the features, and `name` is what
                  whoever imported them calls it
    weights_hash: SHA-256 over the files that were loaded (of foreign features, that were
                  imported), or the seed
    layers:       which hidden layers are kept, outermost last; [layers, dim] in the cache
    context:      how many utterances before the current one a text encoder reads with it
    dialogue:     whether a text encoder reads utterances in their dialogue, each token once
                  (`pipeline.encoders.windows`): "past" up to the utterance, "whole" what follows
                  as well
    started_from: what fine-tuning started from, "" otherwise: random weights that were trained
                  for a few epochs are still to be marked
    """

    modality: Modality
    name: str
    weights: WeightsKind
    weights_hash: str
    pooling: str
    precision: Precision
    layers: tuple[int, ...] = (-1,)
    context: int = 0
    started_from: str = ""
    dialogue: DialogueReading = "none"

    def __post_init__(self) -> None:
        if self.context < 0 or (self.context and self.modality in MEDIA):
            raise ValueError(
                "context must be 0 or more utterances, and only a text encoder has one: "
                f"{self.context}"
            )
        if self.dialogue not in get_args(DialogueReading):
            raise ValueError(f"dialogue: one of {get_args(DialogueReading)}, not {self.dialogue!r}")
        if self.dialogue != "none" and (self.context or self.modality in MEDIA):
            raise ValueError(
                "only a text encoder reads dialogues, and it then has no context besides: "
                f"{self.modality}, context {self.context}"
            )

    @property
    def asked_context(self) -> int | Literal["dialogue"]:
        """As it was asked for."""
        return self.context if self.dialogue == "none" else "dialogue"

    @property
    def is_random(self) -> bool:
        return "random" in (self.weights, self.started_from)

    @property
    def is_foreign(self) -> bool:
        return self.weights == "foreign"


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe:
    """Everything that changes feature values. `decode` is None where only text is cached."""

    encoders: tuple[EncoderSpec, ...]
    decode: DecodeConfig | None
    revision: int = REVISION

    def __post_init__(self) -> None:
        names = [encoder.modality for encoder in self.encoders]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a recipe takes one encoder per modality, not {names}")
        # The order they were asked for in changes no value, so it is not kept.
        ordered = sorted(self.encoders, key=lambda spec: MODALITIES.index(spec.modality))
        object.__setattr__(self, "encoders", tuple(ordered))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(encoder.modality for encoder in self.encoders)

    def encoder_of(self, modality: Modality) -> EncoderSpec:
        """Raises KeyError for a modality that has none."""
        return {spec.modality: spec for spec in self.encoders}[modality]

    @property
    def random_modalities(self) -> tuple[Modality, ...]:
        """Modalities whose encoder has, or started from, random weights; reports must say so."""
        return tuple(spec.modality for spec in self.encoders if spec.is_random)

    @property
    def foreign(self) -> dict[Modality, str]:
        """Modalities whose features another tool made, and its name; reports must say so."""
        return {spec.modality: spec.name for spec in self.encoders if spec.is_foreign}

    @property
    def test_clips(self) -> TestClips | None:
        """Which cuts of MELD's test clips were read; None where no clip was."""
        return None if self.decode is None else self.decode.test_clips

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the recipe's canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Canonical: the fingerprint is of these characters."""
        values = dataclasses.asdict(self)
        if self.decode is not None and self.decode.frame_fit == "stretch":
            del values["decode"]["frame_fit"]  # recipes that are older than it mean this
        if self.decode is not None and not self.decode.more_views:
            del values["decode"]["more_views"]  # as well
        for spec in values["encoders"]:
            if spec["dialogue"] == "none":
                del spec["dialogue"]  # as well
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "FeatureRecipe":
        """Raises ValueError or TypeError or KeyError where the text is not a recipe."""
        values = json.loads(text)
        encoders = tuple(
            EncoderSpec(**{**spec, "layers": tuple(spec["layers"])}) for spec in values["encoders"]
        )
        return cls(
            encoders=encoders,
            decode=None if values["decode"] is None else _read_decode(values["decode"]),
            revision=values["revision"],
        )

    def differences(self, other: "FeatureRecipe") -> list[str]:
        """One entry per differing field, `self` first: ["text.name: minilm != bert"]."""
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{name}: {mine.get(name, 'absent')} != {theirs.get(name, 'absent')}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name, "absent") != theirs.get(name, "absent")
        ]


def _read_decode(values: dict[str, Any]) -> DecodeConfig:
    newer = {"frame_fit", "more_views"}
    known = {field.name for field in dataclasses.fields(DecodeConfig)} - newer
    lacking = known - values.keys()
    if lacking:  # a default here would be a guess at what that version did
        raise ValueError(f"written by another version: no decode.{', '.join(sorted(lacking))}")
    views = tuple(FrameView(**view) for view in values.get("more_views", ()))
    return DecodeConfig(**{**values, "more_views": views})


def _flat(recipe: FeatureRecipe) -> dict[str, Any]:
    flat: dict[str, Any] = {"revision": recipe.revision}
    for spec in recipe.encoders:
        for name, value in dataclasses.asdict(spec).items():
            if name != "modality":
                flat[f"{spec.modality}.{name}"] = value
    if recipe.decode is not None:
        for field in dataclasses.fields(DecodeConfig):
            flat[f"decode.{field.name}"] = getattr(recipe.decode, field.name)
        flat["decode.more_views"] = ", ".join(map(str, recipe.decode.more_views)) or "none"
    return flat
