"""All eight ways to lay a picture, by a display matrix, a projection or an SEI message."""

import gc
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray

from pipeline.decode.clip import decode_still
from pipeline.decode.orientation import Orientation
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from tests.media import SIZE, write_clip

# a, b, c, d: what is stored at (x, y) is shown at (a x + c y, b x + d y), y downwards.
Matrix = tuple[float, float, float, float]
MATRICES: dict[str, Matrix] = {
    "upright": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside-down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}


def stored(_: int = 0) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: each quarter of the picture has a grey of its own."""
    picture = np.empty((SIZE[1], SIZE[0], 3), np.uint8)
    across, down = SIZE[0] // 2, SIZE[1] // 2
    picture[:down, :across], picture[:down, across:] = 20, 90
    picture[down:, :across], picture[down:, across:] = 160, 230
    return picture


def shown(picture: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Each pixel put where the matrix says."""
    a, b, c, d = (int(value) for value in matrix)
    y, x = np.indices(picture.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    result = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    result[to_y, to_x] = picture
    return result


def quarters(picture: NDArray[np.uint8]) -> list[int]:
    """Which planted grey each quarter has, left to right and top to bottom."""
    height, width = picture.shape[:2]
    greys = np.array([20, 90, 160, 230])
    return [
        int(greys[np.abs(greys - picture[y, x].mean()).argmin()])
        for y in (height // 4, 3 * height // 4)
        for x in (width // 4, 3 * width // 4)
    ]


def set_matrix(path: Path, matrix: Matrix) -> None:
    """Writes it into the track header of an MP4 or MOV (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    a, b, c, d = (round(value * 65536) for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def remuxed(path: Path, target: Path, bitstream_filter: str | None = None) -> Path:
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        change = BitStreamFilterContext(bitstream_filter, stream) if bitstream_filter else None
        for packet in source.demux(stream):
            if packet.size:
                for each in [packet] if change is None else change.filter(packet):
                    each.stream = copy
                    container.mux(each)
    return target


def assert_shown_as(path: Path, matrix: Matrix) -> None:
    expected = shown(stored(), matrix)
    media = decode_media(path, MediaSpan(), DecodeConfig(), ["video"])
    assert media.frames is not None
    assert media.frames.shape == (16, 128, 171, 3)
    assert quarters(media.frames[8]) == quarters(expected)
    still = decode_still(path, width=80)
    assert still is not None
    assert still.shape == (round(80 * expected.shape[0] / expected.shape[1]), 80, 3)
    assert quarters(still) == quarters(expected)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
def test_a_display_matrix_is_followed(tmp_path: Path, extension: str, name: str) -> None:
    """Matroska keeps it as a projection: a roll, and half a turn of yaw for the mirror."""
    first = "mov" if extension == "mov" else "mp4"
    path = write_clip(tmp_path / f"a.{first}", num_frames=16, picture=stored)
    set_matrix(path, MATRICES[name])
    if extension == "mkv":
        path = remuxed(path, tmp_path / "a.mkv")
    assert_shown_as(path, MATRICES[name])


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("rotate=90", "270"),
        ("rotate=180", "180"),
        ("flip=horizontal", "mirrored"),
        ("flip=vertical", "upside-down"),
    ],
)
def test_an_sei_message_is_followed(tmp_path: Path, said: str, name: str) -> None:
    """It stands at the first picture alone, holds for all, and turns against the clock."""
    path = write_clip(tmp_path / "a.mp4", num_frames=16, picture=stored)
    said = f"h264_metadata=display_orientation=insert:{said}"
    assert_shown_as(remuxed(path, tmp_path / "b.mp4", said), MATRICES[name])


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_a_display_matrix_is_followed_whatever_the_codec(tmp_path: Path, codec: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_clip(
        tmp_path / "a.mp4", num_frames=16, picture=stored, codec=codec, options=options
    )
    set_matrix(path, MATRICES["transposed"])
    assert_shown_as(path, MATRICES["transposed"])


@pytest.mark.parametrize(
    ("degrees", "mirror", "expected"),
    [
        (0, 1, (False, 0)),
        (40, 1, (False, 0)),
        (50, 1, (False, 1)),
        (-50, 1, (False, 3)),
        (170, 1, (False, 2)),
        (-170, 1, (False, 2)),
        (20, -1, (True, 0)),
        (100, -1, (True, 1)),
        (190, -1, (True, 2)),
    ],
)
def test_another_angle_goes_to_the_nearest_quarter(
    degrees: float, mirror: int, expected: tuple[bool, int]
) -> None:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = matrix_bytes((cos * mirror, -sin * mirror, sin, cos))
    found = Orientation.of_matrix(matrix)
    assert (found.is_mirrored, found.quarter_turns) == expected


@pytest.mark.parametrize("scale", [(2.0, 1.0), (1.0, 0.25), (0.5, 0.5)])
def test_a_matrix_that_scales_turns_nothing(scale: tuple[float, float]) -> None:
    assert Orientation.of_matrix(matrix_bytes((scale[0], 0, 0, scale[1]))) == Orientation()
    turned = Orientation.of_matrix(matrix_bytes((0, scale[0], -scale[1], 0)))
    assert turned == Orientation(quarter_turns=3)


@pytest.mark.parametrize("matrix", [bytes(36), b"", bytes(35)])
def test_a_matrix_that_shows_nothing_is_no_matrix(matrix: bytes) -> None:
    assert Orientation.of_matrix(matrix) == Orientation()


def matrix_bytes(matrix: Matrix) -> bytes:
    a, b, c, d = (round(value * 65536) for value in matrix)
    return struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


@pytest.mark.heavy
def test_a_picture_is_freed_when_it_has_been_seen(tmp_path: Path) -> None:
    """And not when the garbage collector comes by: until then each keeps its megabyte."""
    path = write_clip(tmp_path / "a.mp4", num_frames=40)
    gc.collect()
    gc.disable()
    try:
        decode_media(path, MediaSpan(), DecodeConfig(), ["video"])
        left = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    assert left == 0
