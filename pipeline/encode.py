"""Encodes decoded clips into features."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encode_batches import BatchEncoder, encode_in_batches
from pipeline.encoders.encoder import AnyEncoder, EncoderChoice
from pipeline.encoders.registry import build_encoder, find_entry
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipFeatures, DecodedClip, Modality


class Encoders(nn.Module):
    """The frozen encoders by modality. Inputs keep gradients; `encode_clips` switches them off."""

    place: Tensor  # empty; it goes where the encoders go, and not every encoder has a parameter

    def __init__(self, choices: Sequence[EncoderChoice], decode: DecodeConfig | None) -> None:
        super().__init__()
        self.decode = decode
        self.choices = tuple(choices)
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
    """Features of each clip, in order; see `encode_in_batches`."""

    def compute(encoder: AnyEncoder) -> Callable[[Sequence[Any]], NDArray[np.float32]]:
        return lambda items: encoders._encode(encoder, items).cpu().numpy()

    with torch.inference_mode():
        return encode_in_batches(
            {
                modality: BatchEncoder(
                    reading=encoder.preparation,
                    batch_size=encoder.batch_size,
                    encode=compute(encoder),
                )
                for modality, encoder in encoders.items()
            },
            clips,
        )
