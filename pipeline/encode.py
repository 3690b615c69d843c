"""Encodes decoded clips into features."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders.encoder import AnyEncoder, EncoderChoice
from pipeline.encoders.registry import build_encoder, find_entry
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipFailure, ClipFeatures, DecodedClip, Modality


class Encoders(nn.Module):
    """The frozen encoders by modality. Inputs keep gradients; `encode_clips` switches them off."""

    place: Tensor  # empty; it goes where the encoders go, and not every encoder has a parameter

    def __init__(self, choices: Sequence[EncoderChoice], decode: DecodeConfig | None) -> None:
        super().__init__()
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.by_modality = nn.ModuleDict(
            {choice.spec.modality: cast(Any, build_encoder(choice, decode)) for choice in choices}
        )
        # Whether each may compute in bfloat16.
        self.autocast = {
            choice.spec.modality: find_entry(choice.spec.modality, choice.spec.name).autocast
            for choice in choices
        }

    @property
    def device(self) -> torch.device:
        return self.place.device

    def __getitem__(self, modality: Modality) -> AnyEncoder:
        return cast(AnyEncoder, self.by_modality[modality])

    def items(self) -> Iterator[tuple[Modality, AnyEncoder]]:
        for name in self.by_modality:
            modality = cast(Modality, name)
            yield modality, self[modality]

    def encode(self, modality: Modality, clips: Sequence[DecodedClip]) -> Tensor:
        """float32 [batch, layers, dim] of clips that all have this modality."""
        return self._encode(self[modality], self[modality].preparation.prepare(clips))

    def _encode(self, encoder: AnyEncoder, items: Sequence[Any]) -> Tensor:
        return encoder(encoder.preparation.collate(items).to(self.device))


def encode_clips(encoders: Encoders, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
    """Features of each clip, in order. Batches depend on the clips given and on nothing else.

    A modality in which its encoder finds nothing, or whose features are not finite, is lost and
    recorded, never stored. What an encoder leaves out of a clip is recorded as a warning.
    """
    features: list[dict[Modality, NDArray[np.float32]]] = [{} for _ in clips]
    failures = [list(clip.failures) for clip in clips]
    with torch.inference_mode():
        for modality, encoder in encoders.items():
            items = encoder.preparation.prepare(clips)
            for clip, item, known in zip(clips, items, failures, strict=True):
                known += _tell_what_is_not_read(clip, modality, encoder, item)
            for batch in _batches(encoder, items):
                encoded = encoders._encode(encoder, [items[i] for i in batch]).cpu().numpy()
                for index, row in zip(batch, encoded, strict=True):
                    if np.isfinite(row).all():
                        features[index][modality] = row
                    else:
                        failures[index].append(
                            _failure(clips[index], modality, _not_finite(modality))
                        )
    return [
        ClipFeatures(utterance=clip.utterance, raw=raw, failures=tuple(recorded))
        for clip, raw, recorded in zip(clips, features, failures, strict=True)
    ]


def _tell_what_is_not_read(
    clip: DecodedClip, modality: Modality, encoder: AnyEncoder, item: Any
) -> list[ClipFailure]:
    """None of a modality that the clip does not have: who made the clip has told why."""
    if item is None:
        if not clip.has(modality):
            return []
        nothing = ClipError(
            "nothing_to_encode", f"its {modality} holds nothing that can be encoded"
        )
        return [_failure(clip, modality, nothing)]
    left_out = encoder.preparation.shortfall(item)
    return [] if left_out is None else [_failure(clip, modality, left_out, lost=False)]


def _batches(encoder: AnyEncoder, items: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of clips that have the modality; those of like length share a batch."""
    there = [index for index, item in enumerate(items) if item is not None]
    lengths = [encoder.preparation.length(items[index]) for index in there]
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
