"""Encodes clips batch by batch, whatever computes the batches; without PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.encoder import Reading, SaysWhatIsNotThere
from pipeline.errors import ClipError
from pipeline.schema import ClipFailure, ClipFeatures, DecodedClip, Modality


@dataclass(frozen=True, kw_only=True)
class BatchEncoder:
    """reading:    as in `pipeline.encoders.encoder.Preparation`
    batch_size: rows that are encoded together, None all that there are
    encode:     items, at least one -> float32 [items, layers, dim]
    """

    reading: Reading
    batch_size: int | None
    encode: Callable[[Sequence[Any]], NDArray[np.float32]]


def encode_in_batches(
    encoders: Mapping[Modality, BatchEncoder], clips: Sequence[DecodedClip]
) -> list[ClipFeatures]:
    """Features of each clip, in order. Batches depend on the clips given and on nothing else.

    A modality in which its encoder finds nothing, or whose features are not finite, is lost and
    recorded, never stored. What an encoder leaves out of a clip is recorded as a warning.
    """
    features: list[dict[Modality, NDArray[np.float32]]] = [{} for _ in clips]
    failures = [list(clip.failures) for clip in clips]
    for modality, encoder in encoders.items():
        items = encoder.reading.prepare(clips)
        for clip, item, known in zip(clips, items, failures, strict=True):
            known += _tell_what_is_not_read(clip, modality, encoder, item)
        for batch in _batches(encoder, items):
            encoded = encoder.encode([items[i] for i in batch])
            for index, row in zip(batch, encoded, strict=True):
                if np.isfinite(row).all():
                    features[index][modality] = row
                else:
                    failures[index].append(_failure(clips[index], modality, _not_finite(modality)))
    return [
        ClipFeatures(utterance=clip.utterance, raw=raw, failures=tuple(recorded))
        for clip, raw, recorded in zip(clips, features, failures, strict=True)
    ]


def _tell_what_is_not_read(
    clip: DecodedClip, modality: Modality, encoder: BatchEncoder, item: Any
) -> list[ClipFailure]:
    """None of a modality that the clip does not have: who made the clip has told why."""
    if item is None:
        if not clip.has(modality):
            return []
        reading = encoder.reading
        told = (
            reading.nothing
            if isinstance(reading, SaysWhatIsNotThere)
            else f"its {modality} holds nothing that can be encoded"
        )
        return [_failure(clip, modality, ClipError("nothing_to_encode", told))]
    left_out = encoder.reading.shortfall(item)
    return [] if left_out is None else [_failure(clip, modality, left_out, lost=False)]


def _batches(encoder: BatchEncoder, items: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of clips that have the modality; those of like length share a batch."""
    there = [index for index, item in enumerate(items) if item is not None]
    lengths = [encoder.reading.length(items[index]) for index in there]
    order = [there[k] for k in np.argsort(lengths, kind="stable")]
    size = encoder.batch_size or max(len(order), 1)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _not_finite(modality: Modality) -> ClipError:
    return ClipError("not_finite", f"the {modality} encoder gave values that are not finite")


def _failure(
    clip: DecodedClip, modality: Modality, error: ClipError, *, lost: bool = True
) -> ClipFailure:
    return ClipFailure(
        key=clip.utterance.key,
        modality=modality,
        stage="encode",
        code=error.code,
        message=error.message,
        lost=lost,
    )
