"""Clips to frames and sound (see `tests.media` for what the clips plant)."""

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from pipeline.decode import packets as decode_packets
from pipeline.decode import wanted as decode_wanted
from pipeline.decode.clip import decode_clip, decode_still
from pipeline.decode.container import CORE_SECONDS_PER_PACKET, end_where_decoding_hangs
from pipeline.decode.inspect import inspect_clip
from pipeline.decode.spans import decode_media
from pipeline.decode.video import Screen, choose_frames
from pipeline.recipe import DecodeConfig, FrameFit, FrameView
from pipeline.schema import ClipKey, DecodedClip, LocatedClip, MediaSpan, Modality, Utterance
from tests.media import FPS, RATE_HZ, SIZE, grey, pitch_of, textured, tone, write_clip

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}

av.logging.set_level(None)  # hostile files make FFmpeg talkative


def decoded(
    path: Path | None,
    modalities: Sequence[Modality] = ("text", "video", "audio"),
    **settings: object,
) -> DecodedClip:
    utterance = Utterance(key=ClipKey("train", 1, 2), text="Hi")
    clip = LocatedClip(utterance=utterance, path=path)
    return decode_clip(clip, DecodeConfig(**settings), modalities)  # type: ignore[arg-type]


def numbers(clip: DecodedClip) -> list[int]:
    assert clip.frames is not None
    middles = clip.frames[:, 64, 80].mean(axis=1)
    return [round(float(value - 16) / 3) for value in middles]


def codes(clip: DecodedClip, *, lost: bool) -> set[tuple[str, str]]:
    return {(entry.modality, entry.code) for entry in clip.failures if entry.lost == lost}


def middles_of_parts(num_frames: int, parts: int = 16) -> list[int]:
    return [int((2 * part + 1) * num_frames / (2 * parts)) for part in range(parts)]


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


# ---------------------------------------------------------------------- which frames are taken


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


# ------------------------------------------------------------------------- long, cut off, lost


@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi"])
def test_an_overlong_clip_is_capped_with_a_warning(tmp_path: Path, extension: str) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}",
        num_frames=75,
        sound=tone([440, 880, 1320]),
        sound_codec="libmp3lame" if extension == "avi" else "aac",
    )
    clip = decoded(path, max_duration_s=1.0)
    assert clip.times_s is not None
    assert clip.waveform is not None
    assert max(numbers(clip)) <= FPS
    assert clip.times_s[-1] <= 1.0
    assert len(clip.waveform) <= 16_000
    assert len(clip.waveform) == pytest.approx(16_000, abs=1_100)
    assert codes(clip, lost=False) == {("video", "overlong"), ("audio", "overlong")}
    assert codes(clip, lost=True) == set()


def test_an_hour_costs_no_more_than_its_first_seconds(tmp_path: Path) -> None:
    ticks = [number * 240 for number in range(360)]  # ten seconds apart
    path = write_clip(tmp_path / "a.mp4", num_frames=360, ticks=ticks, picture=lambda _: grey(0))
    clip = decoded(path, ["video"])
    assert codes(clip, lost=False) == {("video", "overlong"), ("video", "few_frames")}
    assert clip.times_s is not None
    assert clip.times_s[-1] < 30


@pytest.mark.parametrize("way", ["decoded", "inspected"])
def test_a_watched_decoder_has_a_limit_for_each_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = write_clip(tmp_path / "a.mkv", num_frames=25, sound=tone([440]))
    with av.open(str(path)) as container:
        num_packets = sum(packet.size > 0 for packet in container.demux())
    limits: list[float] = []

    def note(which: int, seconds: float) -> None:
        assert which == signal.ITIMER_PROF
        limits.append(seconds)

    monkeypatch.setattr(signal, "setitimer", note)
    clip = LocatedClip(utterance=Utterance(key=ClipKey("dev", 0, 0), text=""), path=path)

    def decode() -> None:
        if way == "decoded":
            decode_clip(clip, DecodeConfig(), ["video", "audio"])
        else:
            inspect_clip(clip, deep=True)

    decode()
    assert limits == []
    with end_where_decoding_hangs():
        decode()
    assert limits[::2] == [CORE_SECONDS_PER_PACKET] * (len(limits) // 2)
    assert limits[1::2] == [0] * (len(limits) // 2)
    assert len(limits) // 2 > 0.8 * num_packets  # the last ones no sampled picture needs


def test_a_sample_rate_of_one_hertz_makes_no_hours_of_sound(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.wav", codec=None, sound=tone([440]), sound_codec="pcm_s16le")
    content = bytearray(path.read_bytes())
    at = content.index(b"fmt ") + 12
    content[at : at + 8] = struct.pack("<II", 1, 2)
    path.write_bytes(content)
    waveform = decoded(path, ["audio"]).waveform
    assert waveform is None or len(waveform) <= 30 * 16_000


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_file_cut_off_in_the_middle_gives_what_is_there(tmp_path: Path, extension: str) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}",
        num_frames=75,
        sound=tone([440, 880, 1320]),
        container_options={"movflags": "faststart"} if extension == "mp4" else None,
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    clip = decoded(path)
    assert clip.frames is not None
    assert clip.waveform is not None
    assert max(numbers(clip)) < 70
    assert codes(clip, lost=True) == set()
    assert ("video", "truncated") in codes(clip, lost=False)


def test_a_file_that_lost_its_index_is_unreadable(tmp_path: Path) -> None:
    """As MELD's train dia125_utt3: "moov atom not found"."""
    path = write_clip(tmp_path / "a.mp4", sound=tone([440]))
    path.write_bytes(path.read_bytes()[:-3000].replace(b"moov", b"free"))
    clip = decoded(path)
    assert clip.frames is None
    assert clip.waveform is None
    assert codes(clip, lost=True) == {("video", "unreadable"), ("audio", "unreadable")}


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


def test_a_text_only_recipe_needs_no_file() -> None:
    assert decoded(None, ["text"]).failures == ()


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


# --------------------------------------------------------------------------------- hostile files


def test_playlists_named_mp4_reach_neither_network_nor_other_files(tmp_path: Path) -> None:
    secret = write_clip(tmp_path / "secret.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}/x.ts"
        hostile = {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
            "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
            "ffmeta": ";FFMETADATA1\n",
            "ftyp": f"    ftyp\n#EXTM3U\n#EXTINF:1,\n{url}\n",
            "text": "Just some words, not a clip at all.\n" * 20,
            "utf-16": "words".encode("utf-16").decode("latin-1"),
        }
        began = time.monotonic()
        for name, text in hostile.items():
            path = tmp_path / f"{name}.mp4"
            path.write_text(text, encoding="latin-1")
            clip = decoded(path)
            assert clip.frames is None, name
            assert clip.waveform is None, name
            assert {modality for modality, _ in codes(clip, lost=True)} == {"video", "audio"}
        assert time.monotonic() - began < 10
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_picture_named_mp4_is_an_unknown_format(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert codes(decoded(path, ["video"]), lost=True) == {("video", "unknown_format")}


def test_a_codec_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.avi",
        codec="asv2",
        options={},
        sound=tone([440]),
        sound_codec="libmp3lame",
    )
    clip = decoded(path)
    assert codes(clip, lost=True) == {("video", "codec")}
    assert clip.waveform is not None


@pytest.mark.heavy
def test_a_picture_of_33_million_pixels_is_refused_cheaply(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=1)
        video.width, video.height, video.pix_fmt = 8192, 4096, "yuvj420p"
        frame = av.VideoFrame(8192, 4096, "yuvj420p")
        frame.pts = 0
        container.mux(video.encode(frame))
        container.mux(video.encode())
    del frame
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    clip = decoded(path, ["video"])
    assert time.monotonic() - began < 30
    assert psutil.Process().memory_info().rss - before < 100 << 20
    assert {modality for modality, _ in codes(clip, lost=True)} == {"video"}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small clips to be damaged, by extension."""
    folder = tmp_path_factory.mktemp("intact")
    stereo = np.stack([tone([440, 880])] * 2)
    return {
        extension: write_clip(
            folder / f"a.{extension}",
            num_frames=48,
            picture=textured,
            options={"x264-params": "keyint=12:bframes=3", "crf": "40"},
            sound=stereo,
            sound_codec="libmp3lame" if extension == "avi" else "aac",
            layout="stereo",
        ).read_bytes()
        for extension in ("mp4", "mkv", "avi")
    }


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed % 3 else ()) for seed in range(20)]
)
def test_damaged_pictures_and_sound_never_raise(
    tmp_path: Path, intact: dict[str, bytes], seed: int
) -> None:
    """Flipped bytes in the media data: the clip still decodes, in whole or in part."""
    random = np.random.default_rng(seed)
    content = bytearray(intact["mp4"])
    data = content.index(b"mdat") + 4
    for at in random.integers(data, content.index(b"moov") - 4, 1 + 5 * seed):
        content[at] ^= int(random.integers(1, 256))
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    clip = decoded(path)
    for modality, present in (("video", clip.frames), ("audio", clip.waveform)):
        lost = {entry.modality for entry in clip.failures if entry.lost}
        assert (present is None) == (modality in lost)
    assert clip.frames is not None
    assert clip.waveform is not None
    assert np.isfinite(clip.waveform).all()


@pytest.mark.heavy
@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(
    "seed", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_damage_anywhere_in_the_file_never_raises(
    tmp_path: Path, intact: dict[str, bytes], extension: str, seed: int
) -> None:
    """Headers too: every modality is there or recorded as lost, soon, in bounded memory."""
    random = np.random.default_rng(seed)
    path = tmp_path / f"a.{extension}"
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    for _ in range(10):
        content = bytearray(intact[extension])
        header = random.random() < 0.7
        index = content.index(b"moov") if extension == "mp4" else 0
        end = min(index + 3000, len(content)) if header else len(content)
        for at in random.integers(index if header else 0, end, random.integers(1, 6)):
            content[at] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        clip = decoded(path)
        lost = {entry.modality for entry in clip.failures if entry.lost}
        assert {"video", "audio"} - lost == {
            name
            for name, value in (("video", clip.frames), ("audio", clip.waveform))
            if value is not None
        }
        assert len([entry for entry in clip.failures if entry.lost]) == len(lost)
        assert clip.waveform is None or len(clip.waveform) <= 30 * 16_000
    assert time.monotonic() - began < 60
    assert psutil.Process().memory_info().rss - before < 400 << 20


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


def test_a_budget_that_runs_out_loses_each_modality_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.mp4", picture=textured)
    monkeypatch.setattr(decode_packets, "MAX_PACKET_BYTES", 1000)
    clip = decoded(path)
    assert sorted((entry.modality, entry.code) for entry in clip.failures) == [
        ("audio", "no_audio"),
        ("video", "too_large"),
    ]


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


# ----------------------------------------------------------------------------- how frames fit


BRIGHT, DARK, BLACK = 200, 100, 0
# Twice as wide as high: a dark square between two bright halves of one.
WIDE = np.full((80, 160, 3), BRIGHT, np.uint8)
WIDE[:, 40:120] = DARK


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
