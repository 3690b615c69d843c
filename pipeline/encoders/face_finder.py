"""The largest face of each frame of a clip; without PyTorch.

The detector is a frontal Haar cascade (Viola & Jones 2001) of OpenCV's own wheel up to version 4:
"alt2", as the better known "default" saw faces in 7 of 16 pictures without any, and this in none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ClipError, MismatchError, WeightsMissing
from pipeline.schema import DecodedClip
from pipeline.system.extras import file_of_package, needs_extra

SIDE = 64  # of the picture that the network sees
LEAST_FACE = 1 / 10  # of the frame's height; a smaller one has too few pixels to express anything
MARGIN = 0.1  # of the face's side, at each side: the cascade cuts foreheads and chins


@dataclass(frozen=True)
class Faces:
    """pictures: uint8 [frames with a face, 64, 64], grey, at least one; share: of all frames"""

    pictures: NDArray[np.uint8]
    share: float


def find_face_cascade() -> Path:
    """OpenCV's cascade that finds faces; OpenCV is not imported. Raises WeightsMissing."""
    cascade = file_of_package("cv2", "data/haarcascade_frontalface_alt2.xml")
    if cascade is None:
        raise WeightsMissing(
            "video encoder faces: OpenCV's face detector is not installed (version 5 has none); "
            "get it with: pip install 'meld[faces]'"
        )
    return cascade


class FaceFinder:
    """The largest face of each frame of a clip."""

    nothing = "no face is found in its pictures"

    def __init__(self, cascade: Path) -> None:
        with needs_extra("faces"):
            import cv2
        self._cascade = cascade
        self._cv2 = cv2
        # One thread: clips are worked on side by side already.
        cv2.setNumThreads(1)
        self._one_at_a_time = Lock()  # a detector has a state while it looks at a picture
        self._detector = cv2.CascadeClassifier(str(cascade))
        if self._detector.empty():
            raise MismatchError(f"{cascade}: no cascade of OpenCV's")

    def __reduce__(self) -> tuple[type["FaceFinder"], tuple[Path]]:
        return type(self), (self._cascade,)

    @property
    def cascade_sha256(self) -> str:
        return hashlib.sha256(self._cascade.read_bytes()).hexdigest()

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Faces | None]:
        return [None if clip.frames is None else self._prepare(clip.frames) for clip in clips]

    def _prepare(self, frames: NDArray[np.uint8]) -> Faces | None:
        found = [self.find(frame) for frame in frames]
        faces = [face for face in found if face is not None]
        if not faces:
            return None
        return Faces(np.stack(faces), len(faces) / len(found))

    def find(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """uint8 [height, width, 3], RGB -> uint8 [64, 64], or None without a face."""
        grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
        least = max(round(LEAST_FACE * len(grey)), 24)  # the cascade itself is 24 x 24
        with self._one_at_a_time:
            boxes = self._detector.detectMultiScale(
                grey, scaleFactor=1.1, minNeighbors=5, minSize=(least, least)
            )
        if not len(boxes):
            return None
        # Of several as large the highest, then the leftmost: the order of the list is nobody's.
        left, top, width, height = max(
            (tuple(map(int, box)) for box in boxes),
            key=lambda box: (box[2] * box[3], -box[1], -box[0]),
        )
        return self._cut(grey, left, top, max(width, height))

    def _cut(self, grey: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
        """A square with a margin; its edge is repeated where the frame ends."""
        margin = round(MARGIN * side)
        rows = np.arange(top - margin, top + side + margin).clip(0, grey.shape[0] - 1)
        columns = np.arange(left - margin, left + side + margin).clip(0, grey.shape[1] - 1)
        square = np.ascontiguousarray(grey[np.ix_(rows, columns)])
        shrinks = len(rows) > SIDE
        how = self._cv2.INTER_AREA if shrinks else self._cv2.INTER_LINEAR
        resized: NDArray[np.uint8] = self._cv2.resize(square, (SIDE, SIDE), interpolation=how)
        return resized

    def shortfall(self, item: Faces) -> ClipError | None:
        return None  # that some frames show no face is a feature: the share of those that do

    def length(self, item: Faces) -> int:
        return 0
