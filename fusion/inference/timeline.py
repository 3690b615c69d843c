"""The predictions of a media file over time: the value that every output format is made from.

Its JSON is documented by `timeline.schema.json` beside this file. Within a version of the schema
fields are only added.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion.inference.media import PredictedUtterance
from fusion.inference.prediction import Part
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality

SCHEMA = "meld-timeline"
SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("timeline.schema.json")
# Article 50(3) of Regulation (EU) 2024/1689, in force for this since 2 August 2026; Article 5(1)(f)
# forbids it at work and in education.
NOTICE = (
    "Emotions were estimated by a model and may be wrong. In the European Union, people whose "
    "emotions are recognised from face or voice must be told so, and at work and in education it "
    "is forbidden (Regulation (EU) 2024/1689, articles 50(3) and 5(1)(f))."
)
_MOST_MOMENTS = 5


@dataclass(frozen=True, kw_only=True)
class MediaDescription:
    """file: its name without its folder; sha256: of its bytes, hex

    has_video: whether the file has video, or sound alone
    """

    file: str
    duration_ms: int
    sha256: str
    has_video: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """fingerprint: SHA-256 of the weights; recipe: that of the encoders and the decoding

    precision:      what each modality's encoder computes in
    random_weights: modalities whose encoder has, or started from, random weights: their features
        are not meaningful by themselves
    """

    name: str
    fingerprint: str
    recipe: str
    modalities: tuple[Modality, ...]
    random_weights: tuple[Modality, ...] = ()
    precision: Mapping[Modality, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "modalities": list(self.modalities),
            "random_weights": list(self.random_weights),
            "precision": dict(self.precision),
            "labels": {"emotion": list(EMOTIONS), "sentiment": list(SENTIMENTS)},
        }


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The source of the utterances.

    source: "subtitles", "transcript", "whole" (the file is one utterance) or "speech"
    file:   name of the subtitles or the transcript; None where they are inside the media file
    speech: the voice detector, the recogniser and their settings, where speech was recognised
    notes:  remarks for the user
    """

    source: str
    file: str | None = None
    speech: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Times are integer milliseconds from the file's start (see `schema.MediaSpan`), as a player
    shows them."""

    media: MediaDescription
    model: ModelDescription
    segmentation: Segmentation
    utterances: tuple[PredictedUtterance, ...]

    @property
    def num_failed(self) -> int:
        return sum(each.prediction is None for each in self.utterances)

    @property
    def summary(self) -> "Summary":
        return summarise(self.utterances)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "media": vars(self.media),
            "model": self.model.to_dict(),
            "segmentation": {
                "source": self.segmentation.source,
                "file": self.segmentation.file,
                "speech": self.segmentation.speech,
                "notes": list(self.segmentation.notes),
            },
            "utterances": [describe_utterance(each) for each in self.utterances],
            "summary": self.summary.to_dict(),
            "notice": NOTICE,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def describe_utterance(each: PredictedUtterance) -> dict[str, Any]:
    """One utterance as in the JSON; the event stream of the service sends the same."""
    prediction = each.prediction
    present = {part.modality: part for part in prediction.parts} if prediction else {}
    names = [*present, *each.missing]
    return {
        "id": each.id,
        "start_ms": each.spoken.span.start_ms,
        "end_ms": each.spoken.span.end_ms,
        "text": each.spoken.text,
        "text_source": each.spoken.text_source,
        "speaker": each.spoken.speaker,
        "emotion": prediction.emotion.to_dict() if prediction else None,
        "sentiment": prediction.sentiment.to_dict() if prediction else None,
        "modalities": {
            name: _describe_part(present.get(name), each.missing.get(name)) for name in names
        },
        "divided": prediction is not None and prediction.is_divided,
        "warnings": list(each.warnings),
        "error": each.error,
    }


def _describe_part(part: Part | None, reason: str | None) -> dict[str, Any]:
    if part is None:
        return {"present": False, "reason": reason}
    return {
        "present": True,
        "share": round(part.share, 6),
        "support": round(part.support, 6),
        "alone": {"emotion": part.alone.emotion, "sentiment": part.alone.sentiment},
    }


# ----------------------------------------------------------------------------------- in short


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Share of each label in the spoken time that was predicted. Shares add up to 1, or are all 0
    without such time."""

    spoken_ms: int
    emotion: Mapping[str, float]
    sentiment: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "spoken_ms": self.spoken_ms,
            "emotion": {name: round(share, 6) for name, share in self.emotion.items()},
            "sentiment": {name: round(share, 6) for name, share in self.sentiment.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """moments: ids of the utterances with the most certain emotions that are not neutral, the
    strongest first
    turns:   ids of the utterances at which the sentiment changes between positive and negative,
             ignoring neutral ones between
    divided: ids of those in which one modality alone predicts positive and another negative
    """

    shares: Shares
    speakers: Mapping[str, Shares]
    moments: tuple[str, ...]
    turns: tuple[str, ...]
    divided: tuple[str, ...]
    num_utterances: int
    num_failed: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "utterances": self.num_utterances,
            "failed": self.num_failed,
            **self.shares.to_dict(),
            "speakers": {name: shares.to_dict() for name, shares in self.speakers.items()},
            "moments": list(self.moments),
            "turns": list(self.turns),
            "divided": list(self.divided),
        }


def summarise(utterances: Iterable[PredictedUtterance]) -> Summary:
    every = list(utterances)
    tally = _Tally()
    by_speaker: dict[str, _Tally] = defaultdict(_Tally)
    strongest: list[tuple[float, int, str]] = []
    turns, divided, last = [], [], None
    for each in every:
        if each.prediction is None:
            continue
        tally.add(each)
        if each.spoken.speaker is not None:
            by_speaker[each.spoken.speaker].add(each)
        emotion, sentiment = each.prediction.emotion, each.prediction.sentiment.label
        if emotion.label != EMOTIONS[0]:
            strongest.append((-emotion.confidence, each.number, each.id))
        if sentiment != SENTIMENTS[0]:
            if last not in (None, sentiment):
                turns.append(each.id)
            last = sentiment
        if each.prediction.is_divided:
            divided.append(each.id)
    return Summary(
        shares=tally.shares(),
        speakers={name: by_speaker[name].shares() for name in sorted(by_speaker)},
        moments=tuple(name for _, _, name in sorted(strongest)[:_MOST_MOMENTS]),
        turns=tuple(turns),
        divided=tuple(divided),
        num_utterances=len(every),
        num_failed=sum(each.prediction is None for each in every),
    )


@dataclass
class _Tally:
    """Milliseconds by label."""

    emotion: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EMOTIONS, 0))
    sentiment: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SENTIMENTS, 0))

    def add(self, each: PredictedUtterance) -> None:
        span, prediction = each.spoken.span, each.prediction
        if prediction is None or span.end_ms is None:
            return
        self.emotion[prediction.emotion.label] += span.end_ms - span.start_ms
        self.sentiment[prediction.sentiment.label] += span.end_ms - span.start_ms

    def shares(self) -> Shares:
        spoken_ms = sum(self.emotion.values())
        return Shares(
            spoken_ms=spoken_ms,
            emotion={name: ms / max(spoken_ms, 1) for name, ms in self.emotion.items()},
            sentiment={name: ms / max(spoken_ms, 1) for name, ms in self.sentiment.items()},
        )
