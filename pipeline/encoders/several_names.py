"""Names of several encoders, joined by commas -> one entry of the registry.

Choosing imports no PyTorch; what is built and prepared is in `several.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.encoders.encoder import (
    AnyEncoder,
    AnyPreparation,
    EncoderChoice,
    EncoderEntry,
    EncoderWish,
)
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, EncoderSpec, FrameView, Precision, WeightsKind
from pipeline.schema import Modality

SEPARATOR = ","
# The first of these that any part has is what the whole is marked as.
_MARKS: tuple[WeightsKind, ...] = ("random", "finetuned", "pretrained", "none")


def split_names(modality: Modality, name: str) -> list[str]:
    """ "spectrogram, prosody" -> each of them. One that is there several times is that of several
    members of an ensemble. Raises UsageError for an empty one."""
    names = [each.strip() for each in name.split(SEPARATOR)]
    if not all(names):
        raise UsageError(f"--{modality} {name}: an empty name; leave out the comma")
    return names


def check_once(modality: Modality, name: str) -> None:
    """Raises UsageError where an encoder is asked for twice."""
    names = [each.strip() for each in name.split(SEPARATOR)]
    twice = [each for each in names if names.count(each) > 1]
    if twice and not Path(name).exists():
        raise UsageError(f"--{modality} {name}: {twice[0]} is named twice")


Entries = Sequence[tuple[str, EncoderEntry]]


def join_entries(modality: Modality, entries: Entries) -> EncoderEntry:
    """entries: of the encoders by name, in the order that was asked for."""

    def choose(wish: EncoderWish, precision: Precision) -> EncoderChoice:
        if any(entry.is_layered for _, entry in entries):
            parts = _choose_layered(wish, precision, entries)
        else:
            parts = [entry.choose(replace(wish, name=name), precision) for name, entry in entries]
        return EncoderChoice(spec=_join_specs([part.spec for part in parts]), parts=tuple(parts))

    def prepare(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
        from pipeline.encoders.several import prepare_several

        return prepare_several(choice, decode, entries)

    def build(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
        from pipeline.encoders.several import build_several

        return build_several(choice, decode, entries)

    def searches(wish: EncoderWish) -> bool:
        return any(entry.searches(replace(wish, name=name)) for name, entry in entries)

    def frames(_: str) -> tuple[FrameView, ...]:
        views = [view for name, entry in entries if entry.frames for view in entry.frames(name)]
        return tuple(dict.fromkeys(views))

    each = tuple(entry for _, entry in entries)
    return EncoderEntry(
        modality=modality,
        choose=choose,
        prepare=prepare,
        build=build,
        autocast=any(entry.autocast for entry in each),
        searches=searches,
        has_batchnorm=any(entry.has_batchnorm for entry in each),
        is_layered=any(entry.is_layered for entry in each),
        learns=any(entry.learns for entry in each),
        has_weights=any(entry.has_weights for entry in each),
        frames=frames if any(entry.frames for entry in each) else None,
    )


def _choose_layered(
    wish: EncoderWish, precision: Precision, entries: Entries
) -> list[EncoderChoice]:
    """Where some have layers: what concerns layers is for those alone. To ask for all layers of the
    one with the most, as a recipe does, is to ask for all of each."""
    plain = replace(wish, layers=(), context=0, dialogue="none")
    all_layers = replace(wish, layers=())
    whole = [
        entry.choose(replace(all_layers if entry.is_layered else plain, name=name), precision)
        for name, entry in entries
    ]
    most = max((part.spec.layers for part in whole), key=len)
    if wish.layers in ((), most):
        return whole
    return [
        entry.choose(replace(wish, name=name), precision) if entry.is_layered else part
        for (name, entry), part in zip(entries, whole, strict=True)
    ]


def _join_specs(parts: Sequence[EncoderSpec]) -> EncoderSpec:
    longest = max(parts, key=lambda spec: len(spec.layers))
    kinds = {spec.weights for spec in parts}
    return EncoderSpec(
        modality=longest.modality,
        name=SEPARATOR.join(spec.name for spec in parts),
        weights=next(mark for mark in _MARKS if mark in kinds),
        weights_hash=", ".join(spec.weights_hash for spec in parts),
        pooling=", ".join(spec.pooling for spec in parts),
        precision="bfloat16" if any(s.precision == "bfloat16" for s in parts) else "float32",
        layers=longest.layers,
        context=max(spec.context for spec in parts),
        dialogue=next((s.dialogue for s in parts if s.dialogue != "none"), "none"),
    )
