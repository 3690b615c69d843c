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
    FrameView,
)
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, EncoderSpec, Precision, WeightsKind
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
        layered = any(entry.is_layered for _, entry in entries)
        # What concerns layers is for those that have some; where none has, each refuses it.
        plain = replace(wish, layers=(), context=0, dialogue="none") if layered else wish
        parts = tuple(
            entry.choose(replace(wish if entry.is_layered else plain, name=name), precision)
            for name, entry in entries
        )
        return EncoderChoice(spec=_join_specs(tuple(part.spec for part in parts)), parts=parts)

    def prepare(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyPreparation:
        from pipeline.encoders.several import prepare_several

        return prepare_several(choice, decode, entries)

    def build(choice: EncoderChoice, decode: DecodeConfig | None) -> AnyEncoder:
        from pipeline.encoders.several import build_several

        return build_several(choice, decode, entries)

    def searches(wish: EncoderWish) -> bool:
        return any(entry.searches(replace(wish, name=name)) for name, entry in entries)

    def frames(_: str) -> FrameView:
        views = {name: entry.frames(name) for name, entry in entries if entry.frames}
        if len(set(views.values())) > 1:
            wants = ", ".join(f"{name} {view}" for name, view in views.items())
            names = SEPARATOR.join(name for name, _ in entries)
            raise UsageError(
                f"--{modality} {names}: they want frames of different sizes "
                f"({wants}), and a clip's are decoded once; name some that want the same"
            )
        return next(iter(views.values()))

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


def _join_specs(parts: tuple[EncoderSpec, ...]) -> EncoderSpec:
    """Raises UsageError where two of them have many layers, and not equally many."""
    layered = [spec for spec in parts if len(spec.layers) > 1]
    for spec in layered[1:]:
        if len(spec.layers) != len(layered[0].layers):
            raise UsageError(
                f"--{spec.modality} {SEPARATOR.join(each.name for each in parts)}: "
                f"{layered[0].name} has {len(layered[0].layers)} layers and {spec.name} has "
                f"{len(spec.layers)}; keep equally many of both ({spec.modality}_layers = [-1])"
            )
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
