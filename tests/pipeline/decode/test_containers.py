"""Which files are opened, by their first bytes, and what hostile files with those bytes can do."""

import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from pipeline.corpus.clips import locate_clips
from pipeline.decode.clip import decode_clip
from pipeline.decode.formats import CONTAINERS
from pipeline.decode.inspect import inspect_clip
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedMedia, LocatedClip, MediaSpan, Utterance
from tests.media import pitch_of, textured, tone, write_clip

av.logging.set_level(None)  # hostile files make FFmpeg talkative

NUM_FRAMES, SECONDS = 72, 3.0
# The old codecs have no lossless mode: their finest quantiser, and key frames half a second apart.
FINE = {"qscale": "2", "flags": "+qscale", "g": "12"}
H264 = {"qp": "4", "x264-params": "keyint=12:bframes=3"}
# Extension, FFmpeg's format, picture, its options, sound, its rate.
KINDS = [
    ("ts", "mpegts", "libx264", H264, "aac", 48_000),
    ("ts", "mpegts", "mpeg2video", {**FINE, "bf": "2"}, "mp2", 44_100),
    ("ts", "mpegts", "libx264", H264, "ac3", 48_000),
    ("mpg", "mpeg", "mpeg1video", FINE, "mp2", 44_100),
    ("vob", "vob", "mpeg2video", {**FINE, "bf": "2"}, "ac3", 48_000),
    ("vob", "vob", "mpeg2video", FINE, "pcm_dvd", 48_000),
    ("flv", "flv", "libx264", H264, "aac", 44_100),
    ("flv", "flv", "flv", FINE, "libmp3lame", 44_100),
    ("flv", "flv", "flv", FINE, "nellymoser", 44_100),
    ("flv", "flv", "flv", FINE, "adpcm_swf", 44_100),
    ("wmv", "asf", "wmv2", FINE, "wmav2", 44_100),
    ("wmv", "asf", "wmv1", FINE, "wmav1", 44_100),
    ("asf", "asf", "msmpeg4", FINE, "libmp3lame", 44_100),
    ("aac", "adts", None, None, "aac", 44_100),
    ("wma", "asf", None, None, "wmav2", 44_100),
]
IDS = [f"{extension}-{codec}-{sound}" for extension, _, codec, _, sound, _ in KINDS]
Kind = tuple[str, str, str | None, dict[str, str] | None, str, int]


def write_kind(folder: Path, kind: Kind) -> Path:
    extension, container_format, codec, options, sound, rate_hz = kind
    return write_clip(
        folder / f"a.{extension}",
        num_frames=NUM_FRAMES,
        picture=textured,
        codec=codec,
        options=options,
        sound=tone([440, 880, 1320], rate_hz),
        sound_codec=sound,
        rate_hz=rate_hz,
        container_format=container_format,
    )


def decoded(path: Path, start_ms: int = 0, end_ms: int | None = None) -> DecodedMedia:
    span = MediaSpan(start_ms=start_ms, end_ms=end_ms)
    return decode_media(path, span, DecodeConfig(), ["video", "audio"])


def shown_numbers(media: DecodedMedia) -> list[int]:
    """Which of the moving textures each frame is."""
    assert media.frames is not None
    return [
        int(np.abs(planted() - frame.astype(np.float32)).mean(axis=(1, 2)).argmin())
        for frame in media.frames.mean(axis=3)
    ]


@cache
def planted() -> np.ndarray:
    """float32 [frames, height, width]"""
    return np.stack([_scaled(number) for number in range(NUM_FRAMES)]).astype(np.float32)


def _scaled(number: int) -> np.ndarray:
    picture = av.VideoFrame.from_ndarray(textured(number), format="rgb24")
    small = picture.reformat(width=171, height=128, interpolation="BILINEAR").to_ndarray()
    return small.mean(axis=2)


def m2ts(path: Path) -> Path:
    """As Blu-ray and AVCHD store it: four bytes of time before each packet."""
    content = path.read_bytes()
    target = path.with_suffix(".m2ts")
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    target.write_bytes(b"".join(bytes(4) + packet for packet in packets))
    return target


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """Made once, not to be written to."""
    made: dict[int, Path] = {}

    def file_of(kind: Kind) -> Path:
        number = KINDS.index(kind)
        if number not in made:
            made[number] = write_kind(tmp_path_factory.mktemp("kinds"), kind)
        return made[number]

    return file_of


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_file_of_each_kind_gives_the_planted_frames_and_tones(
    file_of: Callable[[Kind], Path], kind: Kind
) -> None:
    path = file_of(kind)
    media = decoded(path)
    assert media.waveform is not None
    for second, pitch in enumerate([440, 880, 1320]):
        heard = media.waveform[16_000 * second + 2_000 : 16_000 * second + 14_000]
        assert pitch_of(heard) == pytest.approx(pitch, abs=5)
    assert len(media.waveform) / 16_000 == pytest.approx(SECONDS, abs=0.15)
    if kind[2] is None:
        assert [failure.code for failure in media.failures] == ["no_video"]
        return
    assert media.failures == ()
    expected = [int((2 * part + 1) * NUM_FRAMES / 32) for part in range(16)]
    assert shown_numbers(media) == expected


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_span_of_each_kind_is_where_the_clock_says(
    file_of: Callable[[Kind], Path], kind: Kind
) -> None:
    """Transport and program streams begin at 1.4 s or anywhere, and have no index to seek in."""
    media = decoded(file_of(kind), 1_000, 2_000)
    assert media.waveform is not None
    assert pitch_of(media.waveform[1_500:14_500]) == pytest.approx(880, abs=5)
    # FLV, ASF and program streams tell the time of a frame of sound to a millisecond or two.
    assert len(media.waveform) == pytest.approx(16_000, abs=32)
    if kind[2] is not None:
        numbers = shown_numbers(media)
        assert numbers == sorted(numbers)
        assert 22 <= numbers[0] <= 26
        assert 44 <= numbers[-1] <= 48


def test_a_blu_ray_stream_is_a_transport_stream(tmp_path: Path) -> None:
    plain = write_kind(tmp_path, KINDS[0])
    assert np.array_equal(decoded(m2ts(plain)).frames, decoded(plain).frames)


@pytest.mark.parametrize("extension", ["mp3", "aac"])
def test_an_id3_tag_hides_no_format(tmp_path: Path, extension: str) -> None:
    """MP3 files begin with one, and so do the segments of AAC that players are sent."""
    codec = {"mp3": "libmp3lame", "aac": "aac"}[extension]
    bare = write_clip(
        tmp_path / f"bare.{extension}",
        codec=None,
        sound=tone([440]),
        sound_codec=codec,
        container_format={"mp3": "mp3", "aac": "adts"}[extension],
        container_options={"id3v2_version": "0", "write_xing": "0"} if extension == "mp3" else None,
    )
    content = bare.read_bytes()
    assert content[:1] == b"\xff"
    tagged = tmp_path / f"tagged.{extension}"
    tag = b"PRIV" + bytes([0, 0, 1, 0, 0, 0]) + bytes(256)
    tagged.write_bytes(b"ID3\x04\x00\x00" + bytes([0, 0, len(tag) >> 7, len(tag) & 127]) + tag)
    with tagged.open("ab") as file:
        file.write(content)
    for path in (bare, tagged):
        waveform = decoded(path).waveform
        assert waveform is not None, path
        assert pitch_of(waveform[2_000:14_000]) == pytest.approx(440, abs=3)


def test_adts_declares_no_length_and_is_not_called_cut_off(tmp_path: Path) -> None:
    """FFmpeg guesses it from the first packets: silence makes the guess far too long."""
    sound = np.concatenate([np.zeros(5 * 44_100, np.float32), *[_noise(44_100)] * 3])
    path = write_clip(
        tmp_path / "a.aac",
        codec=None,
        sound=sound,
        sound_codec="aac",
        rate_hz=44_100,
        container_format="adts",
    )
    assert [failure.code for failure in decoded(path).failures] == ["no_video"]
    clip = LocatedClip(utterance=Utterance(key=ClipKey("dev", 0, 0), text=""), path=path)
    for deep in (False, True):
        inspection = inspect_clip(clip, deep=deep)
        assert [problem.code for problem in inspection.problems] == ["no_video"]
        assert inspection.length_s == pytest.approx(8.0, abs=0.1)


def _noise(num: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, num).astype(np.float32)


@pytest.mark.parametrize("extension", ["ts", "m2ts", "mpg", "vob", "flv", "wmv", "aac", "TS"])
def test_a_clip_of_a_corpus_may_have_any_of_the_extensions(tmp_path: Path, extension: str) -> None:
    path = tmp_path / "train_splits" / f"dia0_utt0.{extension}"
    path.parent.mkdir()
    path.touch()
    [clip] = locate_clips(
        tmp_path, "train", [Utterance(key=ClipKey("train", 0, 0), text="")], "fixed"
    )
    assert clip.path == path


# --------------------------------------------------------------------------------- hostile files


def test_what_is_none_of_them_is_reported_with_all_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(b"Just some words.\n" * 100)
    failures = decoded(path).failures
    assert {failure.message for failure in failures} == {f"not {CONTAINERS}"}
    for name in "MP4 Matroska WebM AVI MPEG-TS MPEG-PS FLV ASF/WMV WAV FLAC Ogg MP3 ADTS".split():
        assert name in CONTAINERS


MAGIC = {
    "mpegts": b"G" + b"\n" * 187,
    "m2ts": b"\n\n\n\nG" + b"\n" * 187,
    "mpeg": b"\x00\x00\x01\xba\n",
    "flv": b"FLV\x01\x05\x00\x00\x00\x09\n",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + b"\n",
    "adts": b"\xff\xf1\x50\x40\x1c\xbf\xfc\n",
}


@pytest.mark.parametrize("name", MAGIC)
def test_a_playlist_behind_the_first_bytes_reaches_nothing(tmp_path: Path, name: str) -> None:
    """Neither the network nor another file, and soon."""
    secret = write_clip(tmp_path / "secret.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n{secret}\n"
        text = f"ffconcat version 1.0\nfile '{secret}'\n{playlist}<ref href='{url}'/>\n".encode()
        magic, body = MAGIC[name], text * 20
        if name == "adts":  # a header at the end of each frame
            pieces = [body[at : at + 222] for at in range(0, len(body) - 222, 222)]
            content = b"".join(magic[:7] + piece for piece in pieces)
        elif name in ("mpegts", "m2ts"):  # the sync byte stands before each packet
            room = 187
            pieces = [body[at : at + room].ljust(room, b"\n") for at in range(0, len(body), room)]
            content = b"".join(magic[: magic.index(b"G") + 1] + piece for piece in pieces)
        else:
            content = magic + body
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        began = time.monotonic()
        media = decoded(path)
        assert time.monotonic() - began < 60
        assert media.frames is None
        assert {failure.modality for failure in media.failures if failure.lost} >= {"video"}
        assert "unknown_format" not in {failure.code for failure in media.failures}
        with pytest.raises(TimeoutError):
            server.accept()


Damage = Callable[[bytes, np.random.Generator], bytes]


def cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(16, len(content)))]


def flip(content: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for at in random.integers(0, len(damaged), random.integers(1, 200)):
        damaged[at] ^= int(random.integers(1, 256))
    return bytes(damaged)


def garble(content: bytes, random: np.random.Generator) -> bytes:
    """The first bytes alone are right."""
    kept = 600
    return content[:kept] + random.integers(0, 256, 100_000, np.uint8).tobytes()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("intact")
    kinds = [KINDS[number] for number in (0, 4, 7, 10, 13)]
    return {kind[1]: write_kind(folder, kind).read_bytes() for kind in kinds}


@pytest.mark.heavy
@pytest.mark.parametrize("damage", [cut, flip, garble])
@pytest.mark.parametrize("name", ["mpegts", "vob", "flv", "asf", "adts"])
def test_damaged_files_never_raise(
    tmp_path: Path, intact: dict[str, bytes], name: str, damage: Damage
) -> None:
    """Each modality is there or recorded as lost, soon, in bounded memory."""
    random = np.random.default_rng(0)
    path = tmp_path / "a"
    before, began = psutil.Process().memory_info().rss, time.process_time()
    for _ in range(6):
        path.write_bytes(damage(intact[name], random))
        for media in (decoded(path), decoded(path, 1_000, 2_000)):
            lost = {failure.modality for failure in media.failures if failure.lost}
            there = {"video": media.frames, "audio": media.waveform}
            assert lost == {modality for modality, value in there.items() if value is None}
            assert media.waveform is None or np.isfinite(media.waveform).all()
            assert media.waveform is None or len(media.waveform) <= 30 * 16_000
    assert time.process_time() - began < 60
    assert psutil.Process().memory_info().rss - before < 300 << 20


def test_no_failure_names_the_folder(tmp_path: Path) -> None:
    """Failures are kept in caches, and caches travel."""
    folder = tmp_path / "private"
    folder.mkdir()
    words, empty = folder / "words.mp4", folder / "empty.mp4"
    words.write_bytes(b"words " * 100)
    empty.touch()
    broken = write_clip(folder / "broken.mp4")
    broken.write_bytes(broken.read_bytes()[:-3000].replace(b"moov", b"free"))
    row = Utterance(key=ClipKey("train", 0, 0), text="")
    for path in (words, empty, broken, folder, folder / "nowhere.mp4"):
        clip = LocatedClip(utterance=row, path=path)
        messages = [each.message for each in decode_clip(clip, DecodeConfig(), ["video"]).failures]
        messages += [problem.message for problem in inspect_clip(clip, deep=False).problems]
        assert len(messages) == 2
        assert not any("private" in message for message in messages), messages
