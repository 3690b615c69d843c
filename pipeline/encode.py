"""Decoded clips to features: the encoders joined, and the same under inference mode."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders.choice import EncoderChoice
from pipeline.encoders.registry import build_encoder
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipFailure, ClipFeatures, DecodedClip, Modality, Utterance

if TYPE_CHECKING:
    from pipeline.encoders.text import TextEncoder

# Part of what makes a run repeatable to the last bit: float results depend on who shares a
# batch. On a CPU batches of 1 to 8 are equally fast; a GPU is still busy with 16.
VIDEO_BATCH = 8
TEXT_BATCH = 16


class Encoders(nn.Module):
    """The frozen encoders by modality. Inputs keep gradients; `encode_clips` switches them off."""

    def __init__(self, choices: Sequence[EncoderChoice], decode: DecodeConfig | None) -> None:
        super().__init__()
        self.by_modality = nn.ModuleDict(
            {choice.spec.modality: build_encoder(choice, decode) for choice in choices}
        )
        self.has_context = any(choice.spec.context for choice in choices)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def texts_of(self, utterances: Sequence[Utterance]) -> tuple[list[str], list[str] | None]:
        """What the text encoder reads: sentences, and contexts where its recipe has them."""
        contexts = [row.context for row in utterances] if self.has_context else None
        return [row.text for row in utterances], contexts

    def count_tokens(self, utterances: Sequence[Utterance]) -> list[int]:
        if not utterances:
            return []
        encoder = cast("TextEncoder", self.by_modality["text"])
        return [len(tokens.ids) for tokens in encoder.tokenise(*self.texts_of(utterances))]

    def encode(self, modality: Modality, clips: Sequence[DecodedClip]) -> Tensor:
        """float32 [batch, layers, dim] of clips that all have this modality."""
        encoder = self.by_modality[modality]
        if modality == "text":
            sentences, contexts = self.texts_of([clip.utterance for clip in clips])
            return encoder(sentences, contexts)
        if modality == "video":
            frames = np.stack([clip.frames for clip in clips if clip.frames is not None])
            return encoder(torch.from_numpy(frames).to(self.device, non_blocking=True))
        return encoder(
            [
                torch.from_numpy(clip.waveform).to(self.device)
                for clip in clips
                if clip.waveform is not None
            ]
        )


def encode_clips(encoders: Encoders, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
    """Features of each clip, in order. Batches depend on the clips given and on nothing else.

    A modality whose features are not finite is lost and recorded, never stored.
    """
    features: list[dict[Modality, NDArray[np.float32]]] = [{} for _ in clips]
    failures = [list(clip.failures) for clip in clips]
    with torch.inference_mode():
        for name in encoders.by_modality:
            modality: Modality = name  # type: ignore[assignment]
            for batch in _batches(modality, clips, encoders):
                encoded = encoders.encode(modality, [clips[i] for i in batch]).cpu().numpy()
                for index, row in zip(batch, encoded, strict=True):
                    if np.isfinite(row).all():
                        features[index][modality] = row
                    else:
                        failures[index].append(_not_finite(clips[index], modality))
    return [
        ClipFeatures(utterance=clip.utterance, raw=raw, failures=tuple(accidents))
        for clip, raw, accidents in zip(clips, features, failures, strict=True)
    ]


def _batches(
    modality: Modality, clips: Sequence[DecodedClip], encoders: Encoders
) -> Iterator[list[int]]:
    """Indices of clips that have the modality; sentences of like length share a batch."""
    if modality == "text":
        indices = [i for i, clip in enumerate(clips) if clip.utterance.text]
        lengths = encoders.count_tokens([clips[i].utterance for i in indices])
        order = [indices[k] for k in np.argsort(lengths, kind="stable")]
        size = TEXT_BATCH
    elif modality == "video":
        order = [i for i, clip in enumerate(clips) if clip.frames is not None]
        size = VIDEO_BATCH
    else:
        order = [i for i, clip in enumerate(clips) if clip.waveform is not None]
        size = max(len(order), 1)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _not_finite(clip: DecodedClip, modality: Modality) -> ClipFailure:
    return ClipFailure(
        key=clip.utterance.key,
        modality=modality,
        stage="encode",
        code="not_finite",
        message=f"the {modality} encoder gave values that are not finite",
    )
