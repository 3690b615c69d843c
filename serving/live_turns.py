"""What the server asks the worker about somebody who speaks now, and what it is told, as JSON.

A request holds all that its answer depends on, the utterances before included: the worker keeps
nothing of a session, so that another one can answer where the first has ended.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fusion.inference.speech import PROMPT, SpeechConfig
from fusion.inference.voice import RATE_HZ, SpeechRegion
from pipeline.decode.pieces import MediaPieces

# How speech is cut into utterances: for a soon answer, or as `meld predict` does it.
Hearing = Literal["prompt", "thorough"]
HEARINGS: Mapping[Hearing, SpeechConfig] = {"prompt": PROMPT, "thorough": SpeechConfig()}


@dataclass(frozen=True, kw_only=True)
class Before:
    """An utterance that was said before.

    features: as the worker gave them, for it alone to read; "" where it needs none
    """

    text: str
    features: str = ""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Somebody has spoken.

    regions:      where, as `StretchFinder` found them
    end_ms:       where the sound ends; None where it goes on
    with_words:   whether words are to be recognised
    language:     code of the one that is spoken; None: it is detected
    first_number: of its first utterance
    before:       the utterances before, as far as the worker asked for them
    """

    pieces: MediaPieces
    regions: tuple[SpeechRegion, ...]
    end_ms: int | None
    hearing: Hearing
    with_words: bool
    language: str | None
    first_number: int
    before: tuple[Before, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "what": "turn",
            "pieces": _pack(self.pieces),
            "regions": [asdict(region) for region in self.regions],
            "end_ms": self.end_ms,
            "hearing": self.hearing,
            "with_words": self.with_words,
            "language": self.language,
            "first_number": self.first_number,
            "before": [asdict(each) for each in self.before],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Turn":
        return cls(
            pieces=_unpack(values["pieces"]),
            regions=tuple(_region(each) for each in values["regions"]),
            end_ms=values["end_ms"],
            hearing=values["hearing"],
            with_words=values["with_words"],
            language=values["language"],
            first_number=values["first_number"],
            before=tuple(Before(**each) for each in values["before"]),
        )


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """Somebody is speaking: what do face and voice say of these milliseconds?"""

    pieces: MediaPieces
    start_ms: int
    end_ms: int

    def to_json(self) -> dict[str, Any]:
        return {
            "what": "glimpse",
            "pieces": _pack(self.pieces),
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Glimpse":
        return cls(
            pieces=_unpack(values["pieces"]),
            start_ms=values["start_ms"],
            end_ms=values["end_ms"],
        )


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Somebody will speak: all that is needed be loaded. The answer is empty."""

    with_words: bool

    def to_json(self) -> dict[str, Any]:
        return {"what": "warm", "with_words": self.with_words}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """utterances: as a timeline has them
    before: all of a session's utterances that the next turn may see
    """

    utterances: tuple[Mapping[str, Any], ...]
    before: tuple[Before, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "utterances": list(self.utterances),
            "before": [asdict(each) for each in self.before],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Answer":
        return cls(
            utterances=tuple(values["utterances"]),
            before=tuple(Before(**each) for each in values["before"]),
        )


def _pack(pieces: MediaPieces) -> dict[str, Any]:
    return {
        "start_ms": pieces.start_ms,
        "sound": base64.b64encode(pieces.samples.astype("<i2").tobytes()).decode(),
        "pictures": [[at_ms, base64.b64encode(jpeg).decode()] for at_ms, jpeg in pieces.pictures],
    }


def _unpack(values: Mapping[str, Any]) -> MediaPieces:
    return MediaPieces(
        start_ms=values["start_ms"],
        samples=np.frombuffer(base64.b64decode(values["sound"]), "<i2").astype(np.int16),
        rate_hz=RATE_HZ,
        pictures=tuple((at_ms, base64.b64decode(jpeg)) for at_ms, jpeg in values["pictures"]),
    )


def _region(values: Mapping[str, Any]) -> SpeechRegion:
    pauses = tuple((first, past) for first, past in values["pauses"])
    return SpeechRegion(**{**values, "pauses": pauses})
