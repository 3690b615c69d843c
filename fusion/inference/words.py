"""Predictions from words alone, without media."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion.inference.media import PredictedUtterance, predict_spans
from fusion.inference.predictor import Predictor
from fusion.inference.segments import SpokenSpan
from pipeline.corpus.texts import normalise_text
from pipeline.decode.process import DecoderHere
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan, Modality


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The words of one speaker; speaker: None where unknown."""

    text: str
    speaker: str | None = None


def predict_words(predictor: Predictor, turns: Sequence[Turn]) -> Iterator[PredictedUtterance]:
    """Predicts each turn of one dialogue, in order, as `predict_media` does with the same words and
    no video or audio. Their spans have no meaning.

    Raises UsageError where the run reads no words.
    """
    if not predictor.word_modalities:
        reads = ", ".join(predictor.modalities)
        raise UsageError(f"{predictor.name} takes {reads} and no words; send media")
    texts = [normalise_text(turn.text) for turn in turns]
    spans = [
        SpokenSpan(
            span=MediaSpan(),
            text=text,
            text_source="given" if text else "none",
            speaker=turn.speaker,
        )
        for text, turn in zip(texts, turns, strict=True)
    ]
    return predict_spans(predictor, Path("words"), spans, decoder=_NoMedia())


class _NoMedia(DecoderHere):
    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        return (DecodedMedia(span=span) for span in spans)
