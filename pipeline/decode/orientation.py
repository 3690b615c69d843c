"""Rotates and mirrors stored pictures so that they are upright.

Phones and cameras store what their sensor sees and say in a display matrix how to show it: in the
track header of MP4 and MOV (ISO 14496-12, 8.3.2), as Matroska's projection, or in an SEI message
of H.264 or HEVC. FFmpeg attaches the matrix to each frame and does not apply it.
"""

import math
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from numpy.typing import NDArray

_UNIT = 1 << 16  # the matrix has 16 bits behind the point


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight orientations: first mirrored left to right, if at all, and then rotated
    counterclockwise by `quarter_turns` (0 to 3)."""

    is_mirrored: bool = False
    quarter_turns: int = 0

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation | None":
        """The orientation in the frame's display matrix, rounded to quarter turns. None without a
        matrix."""
        try:
            # Not `frame.side_data`, which the frame keeps: as that keeps the frame, only the
            # garbage collector would free the picture, and the decoder take new memory meanwhile.
            found = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
        except ValueError:  # PyAV raises for side data of a kind that it does not know
            return cls(quarter_turns=round(frame.rotation / 90) % 4)
        return None if found is None else cls.of_matrix(bytes(found))

    @classmethod
    def of_matrix(cls, matrix: bytes) -> "Orientation":
        """matrix: nine int32 of the machine's byte order, a b u c d v x y w; the stored point
        (x, y), y downwards, is shown at (a x + c y, b x + d y), moved to where it is seen"""
        if len(matrix) < 36:
            return cls()
        a, b, _, c, d = (int(value) / _UNIT for value in np.frombuffer(matrix, "=i4", 5))
        is_mirrored = a * d < b * c
        if is_mirrored:  # the mirror comes first: what stays to be done is for -x
            a, b = -a, -b
        across, down = math.hypot(a, c), math.hypot(b, d)
        if not across or not down:  # such a matrix shows nothing
            return cls()
        turned = -math.degrees(math.atan2(b / down, a / across))
        return cls(is_mirrored=is_mirrored, quarter_turns=round(turned / 90) % 4)

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height are exchanged."""
        return self.quarter_turns % 2 == 1

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turns a stored picture, uint8 [height, width, 3], upright; width and height are exchanged
        if `swaps_sides`."""
        mirrored = picture[:, ::-1] if self.is_mirrored else picture
        return np.ascontiguousarray(np.rot90(mirrored, self.quarter_turns))
