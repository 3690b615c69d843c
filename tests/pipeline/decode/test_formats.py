"""Which format a file's bytes tell, and what is said about those that are not read."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.container import open_container
from pipeline.decode.formats import CONTAINERS, find_demuxer, tell_other_format
from pipeline.decode.spans import decode_media
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from tests.media import pitch_of, tone, write_clip


def demuxer(content: bytes) -> str | None:
    return find_demuxer(io.BytesIO(content))


def told(content: bytes, name: str = "dia0_utt0.mp4") -> str:
    assert demuxer(content) is None
    return tell_other_format(io.BytesIO(content), name)


def mpeg(header: str, size: int) -> bytes:
    return bytes.fromhex(header).ljust(size, b"\x55")


def adts(size: int) -> bytes:
    head = bytearray.fromhex("fff15000001ffc")
    head[3], head[4], head[5] = size >> 11, size >> 3 & 0xFF, (size & 7) << 5 | 0x1F
    return bytes(head).ljust(size, b"\x21")


# 128 kbit/s, 44.1 kHz, layer 3: 417 bytes; 160 kbit/s, 48 kHz, layer 2: 480.
MP3, MP2, AAC = mpeg("fffb9000", 417), mpeg("fffd9400", 480), adts(300)
LOAS = b"\x56\xe0\x3d".ljust(64, b"\x20")
ID3 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        *((b"\0\0\0\x18" + box + bytes(64), "mp4") for box in (b"ftyp", b"styp", b"sidx", b"moof")),
        *((b"\0\0\0\x08" + box + bytes(64), "mp4") for box in (b"wide", b"pnot", b"junk", b"free")),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"RIFX\0\0\0\0WAVEfmt ", "wav"),
        (b"RF64\xff\xff\xff\xffWAVEds64", "wav"),
        (b"BW64\xff\xff\xff\xffWAVEds64", "wav"),
        (b"RIFF\0\0\0\0WEBPVP8 ", None),
        (b"FORM\0\0\0\0AIFFCOMM", "aiff"),
        (b"FORM\0\0\0\0AIFCFVER", "aiff"),
        (b"FORM\0\0\0\0ILBMBMHD", None),
        (bytes.fromhex("726966662e91cf11a5d628db04c10000") + bytes(24), "w64"),
        (b".snd\0\0\0\x18" + bytes(24), "au"),
        (b"caff\0\x01\0\0desc", "caf"),
        (b"#!AMR\n" + bytes(40), "amr"),
        (b"#!AMR-WB\n" + bytes(40), "amr"),
        (MP3 * 3, "mp3"),
        (MP3, "mp3"),
        (MP3[:200], "mp3"),  # shorter than its first frame
        (MP3 + b"TAG" + bytes(125), "mp3"),
        (MP2 * 3, "mp3"),
        (ID3 + MP3 * 3, "mp3"),
        (ID3 + ID3 + MP3 * 3, "mp3"),
        (ID3 + bytes(3000) + MP3 * 5, "mp3"),  # the tag is longer than it says
        (MP3[100:] + MP3 * 5, "mp3"),  # recorded from a stream
        (AAC * 3, "aac"),
        (ID3 + AAC * 3, "aac"),
        (LOAS * 3, "loas"),
        (ID3 + b"fLaC" + bytes(40), "flac"),
        (b"".join(b"G" + bytes(187) for _ in range(3)), "mpegts"),
        (b"".join(bytes(4) + b"G" + bytes(187) for _ in range(3)), "mpegts"),
        (b"".join(b"G" + bytes(203) for _ in range(3)), "mpegts"),
        (bytes(100) + b"".join(b"G" + bytes(187) for _ in range(6)), "mpegts"),
    ],
)
def test_a_format_is_recognised_by_its_first_bytes(content: bytes, name: str | None) -> None:
    assert demuxer(content) == name


@pytest.mark.parametrize(
    "content",
    [
        MP3[:4] + bytes(2000),  # no second frame
        MP3 + AAC * 3,
        AAC[:7] + bytes(2000),
        mpeg("fffbf000", 417) * 3,  # no such bit rate
        mpeg("fffb0000", 417) * 3,  # free bit rate, which no decoder of ours reads
        mpeg("fffb9c00", 417) * 3,  # no such rate
        mpeg("ffeb9000", 417) * 3,  # no such version
        b"\xff\xfe" + "<?xml?>".encode("utf-16-le") * 200,  # UTF-16, once taken for MP3
        b"\xff\xe0" + bytes(2000),
        b"\xff" * 3000,
        ID3 + b"words " * 500,
        b"GGGGG" + bytes(2000),
        b"",
        b"\xff",
    ],
)
def test_two_bytes_are_no_format(content: bytes) -> None:
    assert demuxer(content) is None


@pytest.mark.heavy
def test_noise_is_no_format() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        assert demuxer(b"\xff\xfb" + random.bytes(20_000)) is None
        assert demuxer(random.bytes(20_000)) is None


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            b"\0\0\0\x01\x67\x64\0\x1f" + bytes(99),
            "dia0_utt0.h264",
            "raw H.264 is not read; convert it: "
            "ffmpeg -framerate 25 -i dia0_utt0.h264 -c copy dia0_utt0.mp4",
        ),
        (b"\0\0\x01\x09\xf0" + bytes(99), "a.264", "raw H.264"),
        (b"\0\0\0\x01\x40\x01\x0c" + bytes(99), "a.hevc", "raw HEVC"),
        (b"\x1f\x07\0\x3f".ljust(80, b"\xff") + b"\x3f" + bytes(99), "a.dv", "raw DV is not read"),
        (b"\0\0\x01\xb3" + bytes(99), "a.m2v", "ffmpeg -i a.m2v -c copy a.mkv"),
        (b"DKIF" + bytes(99), "a.ivf", "IVF is not read"),
        (b".RMF" + bytes(99), "my talk.rm", "ffmpeg -i 'my talk.rm' 'my talk.mp4'"),
        (b"wvpk" + bytes(99), "a.wv", "WavPack is not read; convert it: ffmpeg -i a.wv a.flac"),
        # Under a name that is read first, its own is what must be replaced.
        (
            b".RMF" + bytes(99),
            "a.mp4",
            "convert it: ffmpeg -i a.mp4 converted.mp4 && mv converted.mp4 a.mp4",
        ),
        (b"-words", "a.mp4", f"not {CONTAINERS}"),
        (
            b"\xef\xbb\xbf\n<!DOCTYPE html>",
            "a.mp4",
            f"a web page or other markup, not {CONTAINERS}",
        ),
        (b"#EXTM3U\n", "a.mp4", f"a playlist, not {CONTAINERS}"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a.mp4", "a Git LFS pointer"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(content: bytes, name: str, message: str) -> None:
    assert message in told(content, name)


SOUND = [
    ("aiff", "aiff", "pcm_s16be"),
    ("au", "au", "pcm_s16be"),
    ("caf", "caf", "pcm_s16le"),
    ("w64", "w64", "pcm_s16le"),
    ("aac", "adts", "aac"),
    ("mp3", "mp3", "libmp3lame"),
    ("mp2", "mp2", "mp2"),
    ("loas", "latm", "aac"),
]


def decoded(path: Path) -> DecodedMedia:
    return decode_media(path, MediaSpan(), DecodeConfig(), ["video", "audio"])


@pytest.mark.parametrize(("extension", "form", "codec"), SOUND)
def test_sound_of_each_format_is_heard(
    tmp_path: Path, extension: str, form: str, codec: str
) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}",
        codec=None,
        sound=tone([440, 880]),
        sound_codec=codec,
        container_format=form,
    )
    media = decoded(path)
    assert {failure.code for failure in media.failures} == {"no_video"}
    assert media.waveform is not None
    assert pitch_of(media.waveform[2_000:14_000]) == pytest.approx(440, abs=5)
    assert len(media.waveform) == pytest.approx(32_000, abs=3_000)


@pytest.mark.parametrize("first", ["styp", "free", "wide", "junk"])
def test_a_fragmented_file_is_read_whatever_its_first_box(tmp_path: Path, first: str) -> None:
    path = write_clip(
        tmp_path / "a.mp4",
        sound=tone([440, 880]),
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )
    whole = decoded(path)
    content = path.read_bytes()
    path.write_bytes(b"\0\0\0\x10" + first.encode() + b"msdh\0\0\0\0" + content)
    media = decoded(path)
    assert media.frames is not None
    assert np.array_equal(media.frames, whole.frames)
    assert np.array_equal(media.waveform, whole.waveform)


def test_a_fragment_without_its_beginning_is_one_clips_failure(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.mp4",
        sound=tone([440]),
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"moof") - 4 :])
    av.logging.set_level(None)
    assert {failure.modality for failure in decoded(path).failures if failure.lost} == {
        "video",
        "audio",
    }


def test_a_name_tells_no_format(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=tone([440]))
    other = path.rename(tmp_path / "a.mp3")
    with open_container(other) as container:
        assert "matroska" in container.format.name
    (tmp_path / "b.mp3").write_bytes(b"words " * 99)
    with pytest.raises(ClipError, match="not MP4"):
        open_container(tmp_path / "b.mp3")
