"""How long a file is on the clock that utterances are told on."""

import os
from pathlib import Path

import pytest

from pipeline.decode.measure import measure_media
from pipeline.errors import ClipError
from tests.media import SIZE, tone, write_clip


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_file_is_as_long_as_its_longer_stream(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", num_frames=48, sound=tone([440, 550, 660]))
    length = measure_media(path)
    assert length.duration_ms == pytest.approx(3000, abs=50)
    assert length.modalities == ("video", "audio")
    assert length.missing == {}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_late_sound_counts_with_the_time_before_it(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", num_frames=24, sound=tone([440]), sound_starts_s=1)
    assert measure_media(path).duration_ms == pytest.approx(2000, abs=50)


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    silent = measure_media(write_clip(tmp_path / "a.mp4", num_frames=24))
    assert (silent.modalities, silent.missing) == (("video",), {"audio": "the file has no sound"})


def test_what_is_no_media_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "text.mp4").write_text("Dear diary")
    for name in ("pipe.mp4", "text.mp4", "none.mp4"):
        with pytest.raises(ClipError):
            measure_media(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pixels_frames_and_streams_are_as_the_headers_tell(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", num_frames=48, sound=tone([440, 550]))
    length = measure_media(path)
    assert length.num_pixels == SIZE[0] * SIZE[1]
    assert length.num_frames == pytest.approx(48, abs=2)
    assert length.num_streams == 2


def test_sound_alone_has_no_pixels(tmp_path: Path) -> None:
    length = measure_media(
        write_clip(tmp_path / "a.mp3", codec=None, sound=tone([440]), sound_codec="mp3")
    )
    assert (length.num_pixels, length.num_frames, length.num_streams) == (0, 0, 1)
