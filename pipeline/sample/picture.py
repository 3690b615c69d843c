"""Makes video frames from poses: the head in the room, in the colour format of the video.

Each different pose is composed once, directly in YUV 4:2:0, and its frame is reused.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.sample.expressions import EXPRESSIONS
from pipeline.sample.face import HEAD_SIZE, Head, Look
from pipeline.sample.motion import Pose
from pipeline.sample.scene import HEIGHT, WIDTH, draw_scene

_MARGIN = HEAD_SIZE // 2


def draw_frames(
    poses: list[Pose], *, look: Look, emotion: str, room: int, rng: random.Random
) -> Iterator[av.VideoFrame]:
    """One yuv420p frame per pose; equal poses give the same object."""
    head_x, head_y = 640 + 2 * rng.randint(-18, 18), 346 + 2 * rng.randint(-6, 6)
    scene = _yuv420(draw_scene(look, room=room, head_x=head_x, head_y=head_y))
    head = Head(look, EXPRESSIONS[emotion])
    still = _Sprite.of(head.still)
    sprites: dict[tuple[float, bool], _Sprite] = {}
    frames: dict[Pose, av.VideoFrame] = {}
    for pose in poses:
        if pose not in frames:
            face = (pose.mouth, pose.blink)
            if face not in sprites:
                moving = _Sprite.of(head.moving(pose.mouth, blink=pose.blink))
                sprites[face] = still.replaced(moving, *Head.MOVING[:2])
            corner = (head_x - _MARGIN + pose.right, head_y - _MARGIN + pose.down)
            frames[pose] = sprites[face].on(scene, *corner)
        yield frames[pose]


@dataclass(frozen=True)
class _Sprite:
    """A picture with transparency that can be laid over a YUV 4:2:0 frame at even coordinates.

    colours: uint16, times alpha: luma [h, w] and chroma [h / 2, w / 2] twice
    clear:   uint16, 255 - alpha, in the same three sizes
    """

    colours: tuple[NDArray[np.uint16], ...]
    clear: tuple[NDArray[np.uint16], ...]

    @classmethod
    def of(cls, picture: Image.Image) -> "_Sprite":
        """Makes a sprite from an RGBA picture of even width and height."""
        alpha = np.asarray(picture.getchannel("A")).astype(np.uint16)
        rgb = av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
        luma, *chroma = rgb.reformat(format="yuv444p").to_ndarray().astype(np.uint16)
        clear = 255 - _halved(alpha)
        return cls(
            (luma * alpha, *(_halved(plane * alpha) for plane in chroma)),
            (255 - alpha, clear, clear),
        )

    def replaced(self, part: "_Sprite", left: int, top: int) -> "_Sprite":
        """A copy in which `part` replaces what is there."""
        return _Sprite(
            _pasted(self.colours, part.colours, left, top),
            _pasted(self.clear, part.clear, left, top),
        )

    def on(self, scene: NDArray[np.uint8], left: int, top: int) -> av.VideoFrame:
        """Lays the sprite over `scene` (as from `_yuv420`), cropped at its edges."""
        frame = scene.copy()
        for plane, colour, clear in zip(_planes(frame), self.colours, self.clear, strict=True):
            scale = WIDTH // plane.shape[1]
            x, y = left // scale, top // scale
            cut = np.s_[max(0, -y) : plane.shape[0] - y, max(0, -x) : plane.shape[1] - x]
            height, width = colour[cut].shape
            under = plane[max(0, y) : max(0, y) + height, max(0, x) : max(0, x) + width]
            total = under * clear[cut] + colour[cut]
            under[:] = (total + (total >> 8) + 1) >> 8  # total / 255, without a division
        return av.VideoFrame.from_ndarray(frame, format="yuv420p")


def _pasted(
    planes: tuple[NDArray[np.uint16], ...],
    parts: tuple[NDArray[np.uint16], ...],
    left: int,
    top: int,
) -> tuple[NDArray[np.uint16], ...]:
    copies = tuple(plane.copy() for plane in planes)
    for copy, part in zip(copies, parts, strict=True):
        scale = HEAD_SIZE // copy.shape[1]
        x, y = left // scale, top // scale
        copy[y : y + part.shape[0], x : x + part.shape[1]] = part
    return copies


def _yuv420(picture: Image.Image) -> NDArray[np.uint8]:
    """Converts to uint8 [HEIGHT * 3 / 2, WIDTH]: luma, then the two chroma planes."""
    frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
    planes: NDArray[np.uint8] = frame.reformat(format="yuv420p").to_ndarray()
    return planes


def _planes(frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Views of the three planes of an array from `_yuv420`."""
    flat, luma, chroma = frame.reshape(-1), WIDTH * HEIGHT, WIDTH * HEIGHT // 4
    half = (HEIGHT // 2, WIDTH // 2)
    return [
        flat[:luma].reshape(HEIGHT, WIDTH),
        flat[luma : luma + chroma].reshape(half),
        flat[luma + chroma :].reshape(half),
    ]


def _halved(plane: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Halves both sides; each value is the mean of 2 x 2."""
    total = plane[::2, ::2].astype(np.uint32) + plane[1::2, ::2]
    total += plane[::2, 1::2]
    total += plane[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint16)
