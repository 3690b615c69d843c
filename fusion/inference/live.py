"""What is heard and seen live, stretch by stretch: what `predict_media` does with a file, with the
same functions.

    regions + pieces -> hear_stretch -> spans -> decode_pieces -> predict_after -> utterances

Which stretches there are is not decided here: `StretchFinder` does, where the sound arrives.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusion.inference.media import PredictedUtterance, predict_after
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import Recogniser
from fusion.inference.segments import SpokenSpan, fit_into
from fusion.inference.speech import SpeechConfig, hear_stretch
from fusion.inference.voice import SpeechRegion, as_waveform
from pipeline.decode.pieces import MediaPieces
from pipeline.decode.process import DecoderProcess
from pipeline.schema import MEDIA, ClipFeatures, DecodedMedia, MediaSpan


@dataclass(frozen=True, kw_only=True)
class HeardStretch:
    """A stretch that has ended.

    pieces: its sound, and what was seen meanwhile, from before its start on
    end_ms: where the sound ends; None where it goes on
    """

    regions: tuple[SpeechRegion, ...]
    pieces: MediaPieces
    end_ms: int | None = None

    def samples(self) -> NDArray[np.float32]:
        """float32 [samples]: from the first region's start to the last one's end"""
        first, past = (
            (ms - self.pieces.start_ms) * self.pieces.rate_hz // 1000
            for ms in (self.regions[0].start_ms, self.regions[-1].end_ms)
        )
        return as_waveform(self.pieces.samples[first:past])


def predict_stretch(
    predictor: Predictor,
    decoder: DecoderProcess,
    recogniser: Recogniser | None,
    stretch: HeardStretch,
    config: SpeechConfig,
    before: Sequence[ClipFeatures],
    *,
    first_number: int,
) -> list[tuple[PredictedUtterance, ClipFeatures]]:
    """Its utterances, and the features that later ones may see.

    Args:
        recogniser: None leaves the words out
        before: as in `predict_after`

    Raises ClipError where a picture ends the decoder's process, MeldError where the recogniser has
    ended.
    """
    past_ms = stretch.pieces.start_ms + _length_ms(stretch.pieces)
    end_ms = past_ms if stretch.end_ms is None else stretch.end_ms
    heard = hear_stretch(stretch.regions, stretch.samples(), config, recogniser, end_ms=end_ms)
    spans = fit_into(heard.utterances, end_ms).spans
    if not spans:
        return []
    media = _decode(predictor, decoder, stretch.pieces, [each.span for each in spans])
    return predict_after(predictor, before, spans, media, first_number=first_number)


def predict_glimpse(
    predictor: Predictor, decoder: DecoderProcess, span: MediaSpan, pieces: MediaPieces
) -> PredictedUtterance:
    """What face and voice alone say of a part of an utterance that has not ended.

    Raises ClipError where a picture ends the decoder's process.
    """
    media = _decode(predictor, decoder, pieces, [span])
    [(predicted, _)] = predict_after(predictor, [], [SpokenSpan(span=span)], media, first_number=1)
    return predicted


def keep_before(predictor: Predictor, before: Iterable[ClipFeatures]) -> list[ClipFeatures]:
    """Of the utterances so far, what the next one may see: all of the last ones, or their words."""
    kept = [
        replace(each, utterance=replace(each.utterance, dialogue=()))  # the next one has it all
        for each in list(before)[-max(predictor.turns_before, predictor.context, 1) :]
    ]
    if not predictor.turns_before:
        kept = [replace(each, raw={}, failures=()) for each in kept[-predictor.context :]]
    return kept if predictor.turns_before or predictor.context else []


def _decode(
    predictor: Predictor,
    decoder: DecoderProcess,
    pieces: MediaPieces,
    spans: Sequence[MediaSpan],
) -> list[DecodedMedia]:
    wanted = [name for name in predictor.modalities if name in MEDIA]
    if predictor.decode is None or not wanted:
        return [DecodedMedia(span=span) for span in spans]
    return list(decoder.decode_pieces(pieces, spans, predictor.decode, wanted))


def _length_ms(pieces: MediaPieces) -> int:
    return len(pieces.samples) * 1000 // pieces.rate_hz
