"""Which frames of a clip are taken, without decoding what they do not need; stills."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode import wanted as decode_wanted
from pipeline.decode.clip import decode_still
from pipeline.decode.video import Screen, choose_frames
from pipeline.recipe import DecodeConfig
from tests.media import FPS, textured, tone, write_clip
from tests.pipeline.decode.decoding import codes, decoded, middles_of_parts, numbers

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}


def screen(shown: Sequence[int] | NDArray[np.int64], last: int) -> Screen:
    """A whole clip, whose last picture stays for `last` ticks."""
    ticks = np.array(shown)
    start, end = int(ticks[0]), int(ticks[-1]) + max(last, 1)
    return Screen(shown=ticks, start=start, end=end, zero=start)


def decode_plainly(path: Path) -> NDArray[np.uint8]:
    """Every picture decoded, nothing skipped: what the fast way has to equal."""
    config = DecodeConfig()
    with av.open(str(path)) as container:
        frames = {frame.pts: frame for frame in container.decode(video=0)}
    ticks = np.array(sorted(frames))
    wanted = choose_frames(screen(ticks, int(np.diff(ticks).min()) if len(ticks) > 1 else 1), 16)
    return np.stack(
        [
            frames[int(tick)]
            .reformat(
                width=config.frame_width,
                height=config.frame_height,
                format="rgb24",
                interpolation="BILINEAR",
            )
            .to_ndarray()
            for tick in wanted
        ]
    )


@pytest.mark.parametrize("num_frames", [16, 17, 60, 75])
def test_sampled_frames_are_those_at_the_middles_of_16_equal_parts(
    tmp_path: Path, num_frames: int
) -> None:
    clip = decoded(write_clip(tmp_path / "a.mp4", num_frames=num_frames), ["video"])
    assert clip.frames is not None
    assert clip.frames.shape == (16, 128, 171, 3)
    assert clip.times_s is not None
    assert numbers(clip) == middles_of_parts(num_frames)
    assert np.allclose(clip.times_s, np.array(middles_of_parts(num_frames)) / FPS)
    assert clip.failures == ()


def test_frames_go_by_time_where_the_frame_rate_varies(tmp_path: Path) -> None:
    """Thirty frames in the first second, then one that stays for most of the clip."""
    ticks = [i * 1000 // 30 for i in range(30)] + [1000, 2960]
    path = write_clip(tmp_path / "a.mkv", num_frames=32, ticks=ticks, time_base=Fraction(1, 1000))
    clip = decoded(path, ["video"])
    assert clip.times_s is not None
    middles = [(2 * part + 1) * 3000 / 32 for part in range(16)]
    expected = [max(i for i, tick in enumerate(ticks) if tick <= middle) for middle in middles]
    assert numbers(clip) == expected
    assert expected[5:] == [30] * 11
    assert np.allclose(clip.times_s, np.array(ticks)[expected] / 1000, atol=1e-3)


@pytest.mark.parametrize(
    ("shown", "last", "wanted"),
    [
        ([0], 1, [0, 0, 0, 0]),
        ([7], 0, [7, 7, 7, 7]),
        ([0, 1], 1, [0, 0, 1, 1]),
        ([0, 1, 2, 3], 1, [0, 1, 2, 3]),
        ([-4, 0, 4, 8], 4, [-4, 0, 4, 8]),
        ([0, 100], 300, [0, 100, 100, 100]),
        ([0, 300], 100, [0, 0, 0, 300]),
    ],
)
def test_choosing_frames_by_hand(shown: list[int], last: int, wanted: list[int]) -> None:
    assert choose_frames(screen(shown, last), 4).tolist() == wanted


def test_a_picture_that_appears_just_at_the_middle_of_a_part_is_on_screen_then() -> None:
    assert choose_frames(screen([0, 10, 20, 30], 10), 2).tolist() == [10, 30]


def test_times_count_from_the_first_picture_wherever_the_clock_of_the_file_begins(
    tmp_path: Path,
) -> None:
    options = {"avoid_negative_ts": "disabled"}
    ticks = [5 * FPS + number for number in range(40)]
    late = write_clip(tmp_path / "late.mkv", num_frames=40, ticks=ticks, container_options=options)
    with av.open(str(late)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 4
    clip = decoded(late, ("video",))
    assert clip.times_s is not None
    assert numbers(clip) == middles_of_parts(40)
    assert np.allclose(clip.times_s, np.array(numbers(clip)) / FPS, atol=2e-3)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 15])
def test_a_short_clip_repeats_its_frames_and_says_so(tmp_path: Path, num_frames: int) -> None:
    clip = decoded(write_clip(tmp_path / "a.mp4", num_frames=num_frames), ["video"])
    assert numbers(clip) == middles_of_parts(num_frames)
    assert codes(clip, lost=False) == {("video", "few_frames")}
    assert codes(clip, lost=True) == set()


# ---------------------------------------------------------------------------- what is skipped


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("extension", "codec", "options"),
    [
        ("mp4", "libx264", {"bf": "0", "g": "9"}),
        ("mp4", "libx264", {"x264-params": "keyint=12:bframes=3"}),
        ("mp4", "libx264", {"x264-params": "keyint=40:bframes=6:b-pyramid=normal:ref=5"}),
        ("mkv", "libx264", {"x264-params": "keyint=40:bframes=6:b-pyramid=normal:ref=5"}),
        ("mp4", "libx264", OPEN_GOP),
        ("mkv", "libx264", OPEN_GOP),
        ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=24:bframes=3"}),
        ("mp4", "libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20:bframes=4"}),
        ("mkv", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
        ("mp4", "mpeg4", {"bf": "2", "g": "15"}),
    ],
    ids="no-b closed-gop pyramid pyramid-mkv open-gop open-gop-mkv intra-refresh hevc vp9 "
    "mpeg4".split(),
)
def test_skipping_pictures_changes_no_bit(
    tmp_path: Path, extension: str, codec: str, options: dict[str, str]
) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}", picture=textured, num_frames=120, codec=codec, options=options
    )
    clip = decoded(path, ["video"])
    assert clip.failures == ()
    assert np.array_equal(clip.frames, decode_plainly(path))


@pytest.mark.heavy
def test_pictures_are_really_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an open group of pictures only what leads to a sampled picture is decoded."""
    path = write_clip(tmp_path / "a.mp4", num_frames=300, picture=textured, options=OPEN_GOP)
    given = []
    needed = decode_wanted._needed_packets
    monkeypatch.setattr(
        decode_wanted,
        "_needed_packets",
        lambda *args: [given.append(p) or p for p in needed(*args)],
    )
    decoded(path, ["video"])
    assert 16 < len(given) < 240


# ---------------------------------------------------------------------------------------- stills


@pytest.mark.heavy
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_still_is_the_middle_of_the_whole_clip(tmp_path: Path, extension: str) -> None:
    """Not of what extraction would use of it: its first 30 s."""
    ticks = [number * FPS for number in range(60)]  # one picture a second
    path = write_clip(tmp_path / f"a.{extension}", num_frames=60, ticks=ticks)
    still = decode_still(path, width=80)
    assert still is not None
    assert still.shape == (64, 80, 3)
    assert round(float(still.mean() - 16) / 3) == pytest.approx(29, abs=1)


def test_a_still_of_a_file_cut_off_before_its_middle_is_what_is_there(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.mp4",
        num_frames=75,
        picture=textured,
        options={"g": "1"},
        container_options={"movflags": "faststart"},
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 4 // 10])
    assert decode_still(path, width=80) is not None


def test_there_is_no_still_of_what_has_no_picture(tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "a.wav", codec=None, sound=tone([440]), sound_codec="pcm_s16le")
    assert decode_still(sound, width=80) is None
    assert decode_still(tmp_path / "nowhere.mp4", width=80) is None
