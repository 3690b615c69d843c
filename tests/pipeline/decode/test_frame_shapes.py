"""Frames come upright and are stretched, cropped or padded, each view as if it were alone."""

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode import wanted as decode_wanted
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig, FrameFit, FrameView
from pipeline.schema import MediaSpan
from tests.media import FPS, SIZE, textured, write_clip
from tests.pipeline.decode.decoding import decoded, numbers

BRIGHT, DARK, BLACK = 200, 100, 0
# Twice as wide as high: a dark square between two bright halves of one.
WIDE = np.full((80, 160, 3), BRIGHT, np.uint8)
WIDE[:, 40:120] = DARK


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_clip_filmed_sideways_comes_upright(tmp_path: Path, quarter_turns: int) -> None:
    """Phones store the picture lying down and a display matrix that stands it up."""

    def lying(number: int) -> NDArray[np.uint8]:
        upright = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        upright[:, : SIZE[0] // 2] = 200  # the left half is bright
        return np.ascontiguousarray(
            np.rot90(upright, -quarter_turns)
            if quarter_turns == 2
            else np.resize(_rotated_square(upright, -quarter_turns), upright.shape)
        )

    path = write_clip(tmp_path / "a.mp4", num_frames=20, picture=lying)
    _set_display_rotation(path, quarter_turns)
    clip = decoded(path, ["video"])
    assert clip.frames is not None
    assert clip.frames.shape == (16, 128, 171, 3)
    picture = clip.frames[8].astype(int)
    assert picture[:, 20:60].mean() > 180
    assert picture[:, 110:150].mean() < 30


def _rotated_square(picture: NDArray[np.uint8], quarter_turns: int) -> NDArray[np.uint8]:
    """Turned by a quarter and stretched back to the frame's shape."""
    turned = np.rot90(picture, quarter_turns)
    rows = np.arange(SIZE[1]) * turned.shape[0] // SIZE[1]
    columns = np.arange(SIZE[0]) * turned.shape[1] // SIZE[0]
    return turned[rows][:, columns]


def _set_display_rotation(path: Path, quarter_turns: int) -> None:
    """Writes a counterclockwise turn into the track header's matrix (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    one, width, height = 1 << 16, SIZE[0] << 16, SIZE[1] << 16
    a, b, c, d, x, y = {
        1: (0, -one, one, 0, 0, width),
        2: (-one, 0, 0, -one, width, height),
        3: (0, one, -one, 0, height, 0),
    }[quarter_turns]
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fit", "size", "across", "down"),
    [
        ("stretch", (64, 64), [BRIGHT, DARK, BRIGHT], [DARK, DARK, DARK]),
        ("crop", (64, 64), [DARK, DARK, DARK], [DARK, DARK, DARK]),
        ("pad", (64, 64), [BRIGHT, DARK, BRIGHT], [BLACK, DARK, BLACK]),
        ("pad", (64, 240), [BLACK, DARK, BLACK], [DARK, DARK, DARK]),
        ("crop", (40, 160), [BRIGHT, DARK, BRIGHT], [DARK, DARK, DARK]),
    ],
)
def test_a_wide_picture_is_stretched_cropped_or_padded(
    fit: FrameFit, size: tuple[int, int], across: list[int], down: list[int]
) -> None:
    height, width = size
    config = DecodeConfig(frame_height=height, frame_width=width, frame_fit=fit)
    picture = av.VideoFrame.from_ndarray(WIDE, "rgb24").reformat(format="yuv420p")
    fitted = decode_wanted._Converter(config).to_rgb(picture)
    assert fitted.shape == (height, width, 3)
    frame = fitted.mean(axis=2)
    for line, wanted in ((frame[height // 2], across), (frame[:, width // 2], down)):
        found = [line[2], line[len(line) // 2], line[-3]]
        assert found == pytest.approx(wanted, abs=12)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 4000), (4000, 16)])
def test_a_strip_costs_no_memory(fit: FrameFit, rows: int, columns: int) -> None:
    config = DecodeConfig(frame_height=256, frame_width=256, frame_fit=fit)
    strip = av.VideoFrame.from_ndarray(np.full((rows, columns, 3), 200, np.uint8), "rgb24")
    picture = decode_wanted._Converter(config).to_rgb(strip)
    assert picture.shape == (256, 256, 3)
    scaled = decode_wanted._scaled_size(rows, columns, 256, 256, fit)
    assert max(scaled) <= 4 * 256


@pytest.mark.parametrize("quarter_turns", [0, 1])
def test_each_view_of_a_frame_is_what_it_would_be_alone(quarter_turns: int, tmp_path: Path) -> None:
    views = (
        FrameView(height=48, width=64, fit="stretch"),
        FrameView(height=32, width=32, fit="crop"),
        FrameView(height=36, width=90, fit="pad"),
    )
    first = DecodeConfig(num_frames=3).of_view(views[0])
    path = write_clip(tmp_path / "a.mp4", picture=textured)
    if quarter_turns:
        _set_display_rotation(path, quarter_turns)
    together = replace(first, more_views=views[1:])
    frames = decode_media(path, MediaSpan(), together, ["video"]).frames
    assert frames is not None
    assert frames.shape == (3, *together.frame_shape)
    for view in views:
        alone = decode_media(path, MediaSpan(), first.of_view(view), ["video"]).frames
        seen = together.take_view(frames, view)
        np.testing.assert_array_equal(seen, alone)
        assert np.shares_memory(seen, frames)


def test_a_resolution_that_changes_in_the_middle_is_scaled(tmp_path: Path) -> None:
    """As broadcasts do where a film follows an advertisement."""
    parts = []
    for number, (width, height) in enumerate(((160, 128), (320, 176), (64, 64))):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w") as container:
            video = container.add_stream("libx264", rate=FPS, options={"qp": "4"})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.codec_context.time_base = Fraction(1, FPS)
            for tick in range(16 * number, 16 * number + 16):
                picture = np.full((height, width, 3), 16 + 3 * 20 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = tick, Fraction(1, FPS)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        parts.append(part.read_bytes())
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(parts))
    clip = decoded(path, ["video"], num_frames=6)
    assert numbers(clip) == [0, 0, 20, 20, 40, 40]
    assert clip.failures == ()


def test_a_turned_picture_is_padded_as_it_is_seen() -> None:
    config = DecodeConfig(frame_height=64, frame_width=128, frame_fit="pad")
    converter = decode_wanted._Converter(config)
    converter._orientation = decode_wanted.Orientation(quarter_turns=1)
    upright = converter.to_rgb(av.VideoFrame.from_ndarray(WIDE, "rgb24"))
    assert upright.shape == (64, 128, 3)  # 160 high and 80 wide as it is seen
    assert upright[:, 64].mean(axis=1)[[2, 32, 61]] == pytest.approx([200, 100, 200], abs=12)
    assert upright[32, [2, -3]].max() == 0
