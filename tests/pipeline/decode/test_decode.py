"""Clips to frames and sound, and what a clip lacks (`tests.media` says what the clips plant)."""

import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.schema import DecodedClip
from tests.media import FPS, RATE_HZ, SIZE, pitch_of, textured, tone, write_clip
from tests.pipeline.decode.decoding import codes, decoded, middles_of_parts, numbers


@pytest.mark.parametrize(
    ("extension", "codec", "sound_codec"),
    [
        ("mp4", "libx264", "aac"),
        ("mov", "libx264", "aac"),
        ("mkv", "libx264", "aac"),
        ("mkv", "mjpeg", "flac"),
        ("webm", "libvpx-vp9", "libopus"),
        ("avi", "libx264", "libmp3lame"),
        ("avi", "mpeg4", "pcm_s16le"),
    ],
)
def test_every_container_gives_the_planted_frames_and_tones(
    tmp_path: Path, extension: str, codec: str, sound_codec: str
) -> None:
    """AVI has no presentation times, and x264's B-frames are reordered all the same."""
    path = write_clip(
        tmp_path / f"a.{extension}",
        codec=codec,
        options={"qscale": "2", "flags": "+qscale"} if codec == "mpeg4" else None,
        sound=tone([440, 880]),
        sound_codec=sound_codec,
    )
    clip = decoded(path)
    assert np.allclose(numbers(clip), middles_of_parts(60), atol=1 if codec == "mpeg4" else 0)
    assert clip.waveform is not None
    assert pitch_of(clip.waveform[2000:14000]) == pytest.approx(440, abs=5)
    assert pitch_of(clip.waveform[18000:30000]) == pytest.approx(880, abs=5)
    assert clip.failures == ()


def test_asking_for_one_modality_gives_that_one(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone([440]))
    sound_only, picture_only = decoded(path, ["audio"]), decoded(path, ["video"])
    assert sound_only.frames is None
    assert sound_only.waveform is not None
    assert picture_only.waveform is None
    assert picture_only.frames is not None
    assert sound_only.failures == picture_only.failures == ()


def test_decoding_is_the_same_in_every_thread_and_every_time(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", picture=textured, sound=tone([440, 880]))
    first = decoded(path)
    results: list[DecodedClip] = []
    threads = [threading.Thread(target=lambda: results.append(decoded(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for clip in results:
        assert np.array_equal(clip.frames, first.frames)
        assert np.array_equal(clip.waveform, first.waveform)


@pytest.mark.heavy
def test_a_path_with_strange_characters_is_opened_as_it_is(tmp_path: Path) -> None:
    for name in ("per%20cent.mp4", "a b:c?d#e.mp4", "ünï.mp4", "-dash.mp4", "%03d.mp4"):
        clip = decoded(write_clip(tmp_path / "x.mp4").rename(tmp_path / name), ["video"])
        assert numbers(clip) == middles_of_parts(60), name


# --------------------------------------------------------------------------------------- sound


SURROUND = ("FL", "FR", "FC", "LFE", "SL", "SR")


def test_of_surround_sound_the_front_centre_is_taken(tmp_path: Path) -> None:
    pitches = (300, 500, 1100, 60, 1700, 2300)
    sound = np.stack([tone([pitch]) for pitch in pitches])
    path = write_clip(tmp_path / "a.mp4", codec=None, sound=sound, layout="5.1")
    centre = decoded(path, ["audio"]).waveform
    mixed = decoded(path, ["audio"], channel="downmix").waveform
    assert centre is not None
    assert mixed is not None
    assert pitch_of(centre) == pytest.approx(1100, abs=3)
    assert _level_at(centre, 300) < 0.02 * _level_at(centre, 1100)
    assert all(_level_at(mixed, pitch) > 0.1 * _level_at(mixed, 300) for pitch in pitches[:3])


@pytest.mark.parametrize("channel", ["front_centre", "downmix"])
def test_stereo_is_averaged_in_either_case(tmp_path: Path, channel: str) -> None:
    sound = np.stack([tone([400]), tone([900])])
    path = write_clip(tmp_path / "a.mp4", codec=None, sound=sound, layout="stereo")
    waveform = decoded(path, ["audio"], channel=channel).waveform
    assert waveform is not None
    assert _level_at(waveform, 400) == pytest.approx(_level_at(waveform, 900), rel=0.1)


def _level_at(waveform: NDArray[np.float32], pitch_hz: float) -> float:
    times_s = np.arange(len(waveform)) / 16_000
    return float(np.abs(np.mean(waveform * np.exp(-2j * np.pi * pitch_hz * times_s))))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_sound_comes_at_16_khz_whatever_it_was(tmp_path: Path, rate_hz: int) -> None:
    sound = tone([440, 880], rate_hz)
    path = write_clip(
        tmp_path / "a.wav", codec=None, sound=sound, sound_codec="pcm_s16le", rate_hz=rate_hz
    )
    waveform = decoded(path, ["audio"]).waveform
    assert waveform is not None
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(32_000, abs=40)
    assert pitch_of(waveform[1000:15000]) == pytest.approx(440, abs=3)
    assert pitch_of(waveform[17000:31000]) == pytest.approx(880, abs=3)
    assert np.abs(waveform).max() == pytest.approx(0.3, abs=0.03)


# --------------------------------------------------------------------------------- what is absent


@pytest.mark.parametrize(
    ("extension", "sound_codec"),
    [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("flac", "flac"), ("ogg", "libopus")],
)
def test_a_sound_file_has_sound_and_a_recorded_lack_of_picture(
    tmp_path: Path, extension: str, sound_codec: str
) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}", codec=None, sound=tone([440, 880]), sound_codec=sound_codec
    )
    clip = decoded(path)
    assert clip.frames is None
    assert clip.waveform is not None
    assert pitch_of(clip.waveform[18000:30000]) == pytest.approx(880, abs=5)
    assert codes(clip, lost=True) == {("video", "no_video")}


def test_a_silent_movie_has_frames_and_a_recorded_lack_of_sound(tmp_path: Path) -> None:
    clip = decoded(write_clip(tmp_path / "a.mp4"))
    assert clip.frames is not None
    assert clip.waveform is None
    assert codes(clip, lost=True) == {("audio", "no_audio")}


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=44_100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        for start in range(0, 44_100, 1152):
            samples = tone([440], 44_100)[None, start : start + 1152]
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 44_100, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    clip = decoded(path)
    assert clip.frames is None
    assert clip.waveform is not None
    assert codes(clip, lost=True) == {("video", "no_video")}


def test_a_video_stream_without_packets_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for start in range(0, RATE_HZ, 1024):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    clip = decoded(path)
    assert clip.frames is None
    assert clip.waveform is not None
    assert {modality for modality, _ in codes(clip, lost=True)} == {"video"}


def test_absent_empty_and_irregular_files_are_distinguished(tmp_path: Path) -> None:
    empty = tmp_path / "a.mp4"
    empty.touch()
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)  # opening it would wait for ever
    expected = {
        None: "missing_file",
        tmp_path / "nowhere.mp4": "missing_file",
        empty: "empty_file",
        tmp_path: "not_a_file",
        fifo: "not_a_file",
    }
    for path, code in expected.items():
        clip = decoded(path)
        assert codes(clip, lost=True) == {("video", code), ("audio", code)}
        assert len(clip.failures) == 2


def test_a_missing_file_is_named_by_who_asks_for_it(tmp_path: Path) -> None:
    """`meld predict` puts its whole path before the reason."""
    told = {each.message for each in decoded(tmp_path / "nowhere.mp4").failures}
    assert told == {"No such file or directory"}


def test_a_text_only_recipe_needs_no_file() -> None:
    assert decoded(None, ["text"]).failures == ()
