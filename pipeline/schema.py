"""The values that travel between stages: frozen, checked when built.

An absent modality is an absent key or a False in a presence mask, never zeros that
could be taken for a measurement.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "dev", "test"]
Modality = Literal["text", "video", "audio"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
MODALITIES: tuple[Modality, ...] = ("text", "video", "audio")
# What is decoded from a clip's file; text comes with the annotations.
MEDIA: tuple[Modality, ...] = ("video", "audio")

# The order of MELD's own README; files store the names, so an index never has to be guessed.
EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")
# The index of a label that the corpus does not give; PyTorch's own mark for it.
UNLABELLED = -100

EMBEDDING_DIM = 128


class ClipKey(NamedTuple):
    """Names one utterance. MELD's `Sr No.` is not unique and Dialogue_ID restarts per split."""

    split: Split
    dialogue_id: int
    utterance_id: int

    def __str__(self) -> str:
        return f"{self.split} dia{self.dialogue_id}_utt{self.utterance_id}"


class Said(NamedTuple):
    """An utterance as the others of its dialogue see it; speaker: "" where unknown."""

    speaker: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One annotated row. `text` is normalised; empty means that there is none.

    Labels are names of `EMOTIONS` and `SENTIMENTS`, None where the corpus gives none;
    times are seconds in the episode. `context` is what was said before it in its dialogue,
    where the recipe asks for that (see `texts.with_context`), else empty; `dialogue` is all that is
    said in it, this utterance at `turn` with the others, where the recipe asks for that.
    """

    key: ClipKey
    text: str
    speaker: str = ""
    emotion: str | None = None
    sentiment: str | None = None
    start_s: float = 0.0
    end_s: float = 0.0
    context: str = ""
    dialogue: tuple[Said, ...] = ()
    turn: int = 0

    def __post_init__(self) -> None:
        if self.emotion is not None and self.emotion not in EMOTIONS:
            raise ValueError(f"emotion {self.emotion!r} is none of {', '.join(EMOTIONS)}")
        if self.sentiment is not None and self.sentiment not in SENTIMENTS:
            raise ValueError(f"sentiment {self.sentiment!r} is none of {', '.join(SENTIMENTS)}")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A clip's media file as it was when it was read, so that a change of it is noticed.

    file:     its path below the corpus folder, with /; "" where the corpus has none
    mtime_ns: time of its last change, nanoseconds since 1970
    sha256:   of its bytes, hex; "" where it changed while it was read, so that it is read again
    """

    file: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class LocatedClip:
    """An utterance and its media file; `path` is None where the corpus has none.

    `missing` then says where it was looked for.
    """

    utterance: Utterance
    path: Path | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """One failure of one clip, as kept in the cache's ledger.

    `modality` is what it concerns and `lost` whether that modality is absent because of it;
    one with `lost=False` (a truncated file that still gave frames) is a warning about
    a row that is there.
    """

    key: ClipKey
    modality: Modality
    stage: str
    code: str
    message: str
    lost: bool = True


@dataclass(frozen=True, kw_only=True)
class MediaSpan:
    """A part of a media file, in milliseconds on the file's clock. `end_ms` is None where the span
    goes on to the file's end.

    The clock is presentation time from the file's start: the moment at which the first of its
    picture and its sound appears, whichever of them is asked for. What is never shown (before a
    cut that an edit list makes, say) is on no span and uses up no time.
    Raises ValueError for a span without length and for one that starts before the file.
    """

    start_ms: int = 0
    end_ms: int | None = None

    def __post_init__(self) -> None:
        if self.start_ms < 0:
            raise ValueError(f"a span starts at 0 ms or later, not at {self.start_ms} ms")
        if self.end_ms is not None and self.end_ms <= self.start_ms:
            raise ValueError(f"a span ends after its start: {self.start_ms} to {self.end_ms} ms")


@dataclass(frozen=True, kw_only=True)
class MediaFailure:
    """One failure of one modality of a span: a `ClipFailure` of media that have no key.

    The message names no folder: it is kept in files that travel. Who shows it adds the place.
    """

    modality: Modality
    code: str
    message: str
    lost: bool = True


@dataclass(frozen=True, kw_only=True)
class DecodedMedia:
    """What a span of a media file holds.

    frames:   uint8 [num_frames, height, width, 3], RGB; None without picture
    times_s:  float64 [num_frames], when each frame appears on the file's clock (see `MediaSpan`),
              from the span's start; below 0 for a picture that was on screen before
    waveform: float32 [samples], mono at the config's rate, in [-1, 1]; None without sound
    failures: a modality that was asked for and is None has one with `lost`
    """

    span: MediaSpan
    frames: NDArray[np.uint8] | None = None
    times_s: NDArray[np.float64] | None = None
    waveform: NDArray[np.float32] | None = None
    failures: tuple[MediaFailure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """What is left of a media file after decoding.

    frames:   uint8 [num_frames, height, width, 3], RGB; None without picture
    times_s:  float64 [num_frames], when each frame appears, from the clip's start on the file's
              clock (see `MediaSpan`)
    waveform: float32 [samples], mono at the recipe's rate, in [-1, 1]; None without sound
    """

    utterance: Utterance
    frames: NDArray[np.uint8] | None = None
    times_s: NDArray[np.float64] | None = None
    waveform: NDArray[np.float32] | None = None
    failures: tuple[ClipFailure, ...] = ()

    def __post_init__(self) -> None:
        if self.frames is not None and (self.frames.ndim != 4 or self.frames.shape[3] != 3):
            raise ValueError(f"frames must be [num_frames, height, width, 3]: {self.frames.shape}")
        if self.waveform is not None and self.waveform.ndim != 1:
            raise ValueError(f"waveform must be [samples]: {self.waveform.shape}")

    def has(self, modality: Modality) -> bool:
        """Whether there is something to encode; an encoder may still find nothing in it."""
        there: dict[Modality, bool] = {
            "text": bool(self.utterance.text),
            "video": self.frames is not None,
            "audio": self.waveform is not None,
        }
        return there[modality]

    def content(self, modality: Modality) -> bytes:
        """What an encoder of that modality gets, as bytes; empty where there is nothing."""
        frames, waveform = self.frames, self.waveform
        held: dict[Modality, bytes] = {
            "text": self.utterance.text.encode(),
            "video": b"" if frames is None else frames.tobytes(),
            "audio": b"" if waveform is None else waveform.tobytes(),
        }
        return held[modality]


@dataclass(frozen=True, kw_only=True)
class ClipFeatures:
    """One utterance, encoded: per modality that it has, float32 [layers, dim]."""

    utterance: Utterance
    raw: dict[Modality, NDArray[np.float32]] = field(default_factory=dict)
    failures: tuple[ClipFailure, ...] = ()
