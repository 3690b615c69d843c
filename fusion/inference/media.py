"""Predicts the utterances of one media file in one pass over the file.

    spans -> Decoder -> batches -> Predictor.encode -> Predictor.predict_turns -> utterances

Memory holds one batch of decoded spans, and the features of the turns that later utterances may
see.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from fusion.inference.prediction import Prediction
from fusion.inference.predictor import Predictor
from fusion.inference.saved_features import SavedFeatures
from fusion.inference.segments import SpokenSpan
from pipeline.corpus.texts import with_surroundings
from pipeline.decode.clip import as_clip
from pipeline.decode.process import HERE, Decoder
from pipeline.schema import (
    MEDIA,
    ClipFailure,
    ClipFeatures,
    ClipKey,
    DecodedClip,
    DecodedMedia,
    MediaSpan,
    Modality,
    Utterance,
)

log = logging.getLogger(__name__)

# The size of an extraction shard: which rows share a batch changes results by rounding.
UTTERANCES_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class PredictedUtterance:
    """An utterance and its prediction.

    number:     its place in the file, 1 for the first
    prediction: None where none of the run's modalities is present
    missing:    reason for each absent modality of the run
    codes:      the stable word for each of these reasons
    warnings:   failures of present modalities
    """

    number: int
    spoken: SpokenSpan
    prediction: Prediction | None
    missing: dict[Modality, str]
    codes: dict[Modality, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"u{self.number:04d}"

    @property
    def error(self) -> str | None:
        """Reason why there is no prediction; None if there is one."""
        if self.prediction is not None:
            return None
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
        return f"nothing to predict from ({reasons})"


def predict_spans(
    predictor: Predictor,
    path: Path,
    spans: Sequence[SpokenSpan],
    *,
    duration_ms: int | None = None,
    saved: SavedFeatures | None = None,
    decoder: Decoder = HERE,
) -> Iterator[PredictedUtterance]:
    """Yields the prediction of each span, in order, as soon as it is final.

    One file is one dialogue to a run that has dialogue context; such an utterance sees the 32
    before it, and those after it if the run was trained so.

    Args:
        spans: in order of their start
        duration_ms: of the file, if known: a span that ends there is read to the end of the file,
            as a clip of a corpus is
        saved: saved features of finished batches, to read and to extend
        decoder: who reads the file

    An utterance of a damaged file without any modality has no prediction but a reason.
    Raises ClipError where the file ends the decoder's process.
    """
    absent: Counter[Modality] = Counter()
    held: list[ClipFeatures] = []  # of the utterances from number `first` on
    first = num_given = 0
    to_read = [_to_read(each.span, duration_ms) for each in spans]
    for batch in _encode(predictor, path, spans, to_read, saved, decoder):
        held += batch
        absent.update(
            name for each in batch for name in predictor.modalities if name not in each.raw
        )
        num_there = first + len(held)
        is_last = num_there == len(spans)
        num_ready = num_there if is_last else max(num_there - predictor.turns_after, num_given)
        rows = range(num_given - first, num_ready - first)
        for row, prediction in zip(rows, predictor.predict_turns(held, rows), strict=True):
            yield _describe(predictor, held[row], prediction, spans[first + row], first + row + 1)
        num_given = num_ready
        num_old = max(num_given - predictor.turns_before - first, 0)
        first += num_old
        del held[:num_old]
    told = ", ".join(f"{name} of {count} utterances" for name, count in absent.items())
    log.info("%s: absent: %s", path.name, told or "nothing")


def predict_after(
    predictor: Predictor,
    before: Sequence[ClipFeatures],
    spans: Sequence[SpokenSpan],
    media: Sequence[DecodedMedia],
    *,
    first_number: int,
) -> list[tuple[PredictedUtterance, ClipFeatures]]:
    """The next utterances of a dialogue of which nobody knows how it goes on, with the features
    that later ones may see. A run that looks ahead sees nothing behind them; for any other it is
    what `predict_spans` gives.

    Args:
        before: the utterances before, as far as the run looks back; where it sees no features of
            them, their words do
        media: what was decoded of each span
        first_number: of the first span
    """
    said = [
        replace(each.utterance, key=ClipKey("test", 0, number), context="")
        for number, each in enumerate(before)
    ]
    new = [_as_utterance(len(said) + number, span) for number, span in enumerate(spans)]
    utterances = with_surroundings([*said, *new], predictor.recipe.encoders)[len(said) :]
    clips = [as_clip(*pair) for pair in zip(utterances, media, strict=True)]
    features = predictor.encode(clips)
    held = [*before, *features]
    predictions = predictor.predict_turns(held, range(len(before), len(held)))
    return [
        (_describe(predictor, each, prediction, span, number), each)
        for number, (each, prediction, span) in enumerate(
            zip(features, predictions, spans, strict=True), start=first_number
        )
    ]


def _encode(
    predictor: Predictor,
    path: Path,
    spans: Sequence[SpokenSpan],
    to_read: Sequence[MediaSpan],
    saved: SavedFeatures | None,
    decoder: Decoder,
) -> Iterator[list[ClipFeatures]]:
    """Yields the features of each batch; decoding starts at the first batch that is not saved."""
    utterances = with_surroundings(
        [_as_utterance(number, span) for number, span in enumerate(spans)],
        predictor.recipe.encoders,
    )
    starts = range(0, len(spans), UTTERANCES_PER_BATCH)
    clips: Iterator[DecodedClip] | None = None
    for number, start in enumerate(starts):
        batch = utterances[start : start + UTTERANCES_PER_BATCH]
        features = saved.read(number, batch) if saved is not None and clips is None else None
        if features is None:
            if clips is None:
                _log_decoding(predictor, path, start, len(spans))
                clips = _decode(predictor, path, to_read[start:], utterances[start:], decoder)
            features = predictor.encode(list(islice(clips, len(batch))))
            if saved is not None:
                saved.write(number, features)
        yield features


def _log_decoding(predictor: Predictor, path: Path, start: int, num_spans: int) -> None:
    media = ", ".join(name for name in predictor.modalities if name in MEDIA)
    before = f", {start} were encoded by an earlier call" if start else ""
    log.info(
        "%s: utterances to encode: %d, decoding %s%s",
        path.name,
        num_spans - start,
        media or "nothing",
        before,
    )


def _decode(
    predictor: Predictor,
    path: Path,
    spans: Sequence[MediaSpan],
    utterances: Sequence[Utterance],
    decoder: Decoder,
) -> Iterator[DecodedClip]:
    wanted = [name for name in predictor.modalities if name in MEDIA]
    media: Iterator[DecodedMedia]
    if predictor.decode is None or not wanted:  # words alone
        media = (DecodedMedia(span=span) for span in spans)
    else:
        media = decoder.decode(path, spans, predictor.decode, wanted)
    for utterance, decoded in zip(utterances, media, strict=True):
        yield as_clip(utterance, decoded)


def _to_read(span: MediaSpan, duration_ms: int | None) -> MediaSpan:
    if duration_ms is None or span.end_ms is None or span.end_ms < duration_ms:
        return span
    return MediaSpan(start_ms=span.start_ms)


def _as_utterance(number: int, spoken: SpokenSpan) -> Utterance:
    """With keys of one dialogue, which are used in this file only."""
    return Utterance(key=ClipKey("test", 0, number), text=spoken.text, speaker=spoken.speaker or "")


def _describe(
    predictor: Predictor,
    features: ClipFeatures,
    prediction: Prediction,
    spoken: SpokenSpan,
    number: int,
) -> PredictedUtterance:
    reasons = {
        name: _reason(name, features.failures, spoken)
        for name in predictor.modalities
        if name not in features.raw
    }
    return PredictedUtterance(
        number=number,
        spoken=spoken,
        prediction=prediction if features.raw else None,
        missing={name: told for name, (_, told) in reasons.items()},
        codes={name: code for name, (code, _) in reasons.items()},
        warnings=tuple(
            f"{failure.modality}: {failure.message}"
            for failure in features.failures
            if failure.modality in features.raw
        ),
    )


def _reason(
    modality: Modality, failures: Sequence[ClipFailure], spoken: SpokenSpan
) -> tuple[str, str]:
    """Its stable word, and what is told."""
    told = [(each.code, each.message) for each in failures if each.modality == modality]
    if told:
        return told[-1]
    if not spoken.text:
        return "no_words", "no words are known"
    return "nothing_to_encode", "nothing in it that the encoder can read"
