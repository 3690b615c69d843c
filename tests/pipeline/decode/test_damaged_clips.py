"""Clips that are cut off, damaged, overlong or hostile cost little and never raise."""

import signal
import socket
import struct
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from pipeline.decode import packets as decode_packets
from pipeline.decode.clip import decode_clip
from pipeline.decode.container import CORE_SECONDS_PER_PACKET, end_where_decoding_hangs
from pipeline.decode.inspect import inspect_clip
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, LocatedClip, Utterance
from tests.media import FPS, grey, textured, tone, write_clip
from tests.pipeline.decode.decoding import codes, decoded, numbers

av.logging.set_level(None)  # hostile files make FFmpeg talkative


# ------------------------------------------------------------------------------ long and cut off


def test_a_film_that_ends_within_its_headers_is_said_to_be_cut_off(tmp_path: Path) -> None:
    first = {"movflags": "+faststart"}  # headers, then packets
    path = write_clip(tmp_path / "a.mp4", num_frames=24, sound=tone([440]), container_options=first)
    path.write_bytes(path.read_bytes()[:700])
    told = {each.message for each in decoded(path).failures}
    assert told == {"End of file: it was cut off, or holds headers and nothing else"}


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


# -------------------------------------------------------------------------------- hostile files


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
        assert time.monotonic() - began < 60
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
    began = time.process_time()
    clip = decoded(path, ["video"])
    assert time.process_time() - began < 30
    assert psutil.Process().memory_info().rss - before < 100 << 20
    assert {modality for modality, _ in codes(clip, lost=True)} == {"video"}


# -------------------------------------------------------------------------------- flipped bytes


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
    began = time.process_time()
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
    assert time.process_time() - began < 60
    assert psutil.Process().memory_info().rss - before < 400 << 20
