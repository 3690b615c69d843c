"""What reads clips for several encoders of one modality, side by side; without PyTorch.

clip ── prepare ──> (item of the 1st, item of the 2nd, ...)     None where none finds anything
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.encoders.encoder import Reading, SaysWhatIsNotThere
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig, FrameView
from pipeline.schema import DecodedClip

Items = tuple[Any | None, ...]  # one per encoder; at least one of them is not None


class SideBySide:
    """The readings of all encoders as one, whose item is a tuple of their items."""

    def __init__(
        self,
        parts: Sequence[tuple[str, Reading]],
        decode: DecodeConfig | None,
        views: Sequence[FrameView | None],
    ) -> None:
        """views: of the clips' frames, as each part wants them; None for one that wants none"""
        self.names = [name for name, _ in parts]
        self.readings = [reading for _, reading in parts]
        self.decode, self.views = decode, tuple(views)
        told = [
            f"{name}: {reading.nothing}"
            if isinstance(reading, SaysWhatIsNotThere)
            else f"{name} finds nothing to encode"
            for name, reading in parts
        ]
        self.nothing = "; ".join(told)

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Items | None]:
        columns = [
            reading.prepare(self._as_seen(place, clips))
            for place, reading in enumerate(self.readings)
        ]
        rows = zip(*columns, strict=True)
        return [None if all(item is None for item in row) else row for row in rows]

    def _as_seen(self, place: int, clips: Sequence[DecodedClip]) -> list[DecodedClip]:
        """The clips with the frames that the encoder at this place wants."""
        return [with_view(clip, self.decode, self.views[place]) for clip in clips]

    def shortfall(self, item: Items) -> ClipError | None:
        """What any of them leaves out; the first code stands for all."""
        missing = [name for name, each in zip(self.names, item, strict=True) if each is None]
        found = [
            reading.shortfall(each)
            for reading, each in zip(self.readings, item, strict=True)
            if each is not None
        ]
        errors = [
            ClipError("part_missing", f"{name} finds nothing to encode; its features are zero")
            for name in missing
        ] + [error for error in found if error is not None]
        if len(errors) < 2:
            return next(iter(errors), None)
        return ClipError(errors[0].code, "; ".join(error.message for error in errors))

    def length(self, item: Items) -> int:
        pairs = zip(self.readings, item, strict=True)
        return max(reading.length(each) for reading, each in pairs if each is not None)


def with_view(
    clip: DecodedClip, decode: DecodeConfig | None, view: FrameView | None
) -> DecodedClip:
    """The clip with the frames of this view alone."""
    if clip.frames is None or view is None or decode is None:
        return clip
    return replace(clip, frames=decode.take_view(clip.frames, view))


def spread_layers(own: int, wanted: int) -> list[int]:
    """Which of its own layers stands at each place of `wanted`, which are at least as many: first
    at first, last at last, and between them the one at the nearest depth."""
    if own == 1:
        return [0] * wanted
    return [round(place * (own - 1) / (wanted - 1)) for place in range(wanted)]
