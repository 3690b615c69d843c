"""Detects the format of a media file from its bytes, never from its name.

FFmpeg gets the name of the demuxer, because otherwise it would follow playlists. A sync word of two
bytes occurs by chance in one of 4,000 files, so formats with nothing else are recognised by several
consecutive frames.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

CONTAINERS = (
    "MP4, QuickTime, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV, ASF/WMV, WAV, FLAC, Ogg, MP3, "
    "AAC (ADTS or LOAS), AIFF, AU, CAF or AMR"
)
# Enough for the header of an ID3 tag, for five packets of a transport stream and for two frames of
# MPEG audio or AAC.
_HEAD_BYTES = 20 * 1024
_MAX_TAGS = 4

# The first box of an MP4 or QuickTime file, of one made of fragments, or of a fragment.
_BOXES = frozenset(
    b"ftyp styp moov moof sidx ssix mdat free skip wide pnot junk uuid meta prft emsg PICT".split()
)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"FLV\x01", "flv"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "asf"),
    (bytes.fromhex("726966662e91cf11a5d628db04c10000"), "w64"),
    (b".snd\x00\x00", "au"),
    (b"caff\x00\x01", "caf"),
    (b"#!AMR\n", "amr"),
    (b"#!AMR-WB\n", "amr"),
)
# The length of a frame by its first bytes; 0 where none begins.
_FrameBytes = Callable[[bytes], int]
# The four bytes before the size of a chunk -> possible values of the four bytes after it.
_CHUNKED: dict[bytes, dict[bytes, str]] = {
    b"RIFF": {b"AVI ": "avi", b"WAVE": "wav"},
    b"RIFX": {b"WAVE": "wav"},
    b"RF64": {b"WAVE": "wav"},
    b"BW64": {b"WAVE": "wav"},
    b"FORM": {b"AIFF": "aiff", b"AIFC": "aiff"},
}


@dataclass(frozen=True)
class _Other:
    """An unsupported format: FFmpeg's input options, and the extension that it is converted to."""

    what: str
    extension: str = ".mp4"
    options: str = ""
    copies: bool = False

    def command(self, name: str) -> str:
        """The command line that converts the file to a clip."""
        target = str(PurePath(name).with_suffix(self.extension))
        made = target if target != name else f"converted{self.extension}"
        words = ["ffmpeg", *self.options.split(), "-i", _as_file(name)]
        words += [*(["-c", "copy"] if self.copies else []), _as_file(made)]
        line = shlex.join(words)
        # With its old name, the original would still be read first.
        return line if made == target else f"{line} && mv {made} {shlex.quote(name)}"


def _as_file(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


_OTHERS: tuple[tuple[bytes, _Other], ...] = (
    (bytes.fromhex("060e2b34020501010d010201"), _Other("MXF")),
    (b".RMF", _Other("RealMedia")),
    (b"DKIF", _Other("IVF", ".mkv", copies=True)),
    (b"YUV4MPEG2 ", _Other("YUV4MPEG2")),
    (b"\x00\x00\x01\xb3", _Other("raw MPEG video", ".mkv", copies=True)),
    (b"GIF87a", _Other("GIF")),
    (b"GIF89a", _Other("GIF")),
    (b"MAC ", _Other("Monkey's Audio", ".flac")),
    (b"wvpk", _Other("WavPack", ".flac")),
    (b"TTA1", _Other("True Audio", ".flac")),
    (b"MPCK", _Other("Musepack", ".flac")),
    (b"MP+", _Other("Musepack", ".flac")),
    (b"DSD ", _Other("DSD", ".flac")),
    (b"\x0b\x77", _Other("raw AC-3", ".flac")),
    (b"\x7f\xfe\x80\x01", _Other("raw DTS", ".flac")),
)
# Files that are not media: the result of a failed download or a misleading name.
_NO_MEDIA: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull brings the file itself)"),
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a playlist"),
    (b"[playlist]", "a playlist"),
    (b"<", "a web page or other markup"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
)


def find_demuxer(file: BinaryIO) -> str | None:
    """FFmpeg's name of the format; None if it is not one of `CONTAINERS`."""
    head = file.read(_HEAD_BYTES)
    if head[4:8] in _BOXES:
        return "mp4"
    if head[:4] in _CHUNKED:
        return _CHUNKED[head[:4]].get(head[8:12])
    for magic, demuxer in _MAGIC:
        if head.startswith(magic):
            return demuxer
    if _is_transport_stream(head):
        return "mpegts"
    start = 0
    for _ in range(_MAX_TAGS):  # before any of several formats, and sometimes more than one
        if not head.startswith(b"ID3"):
            break
        start += _id3_bytes(head)
        file.seek(start)
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"fLaC"):
        return "flac"
    kinds = (("aac", _adts_bytes), ("mp3", _mpeg_bytes), ("loas", _loas_bytes))
    return next((name for name, frame_bytes in kinds if _has_frames(head, frame_bytes)), None)


def tell_other_format(file: BinaryIO, name: str) -> str:
    """Describes a file of an unsupported format and how to convert it; name: its file name."""
    head = file.read(_HEAD_BYTES)
    other = next((other for magic, other in _OTHERS if head.startswith(magic)), None)
    other = other or _raw_pictures(head)
    if other is not None:
        return f"{other.what} is not read; convert it: {other.command(name)}"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    what = next((what for magic, what in _NO_MEDIA if start.startswith(magic)), None)
    return f"not {CONTAINERS}" if what is None else f"{what}, not {CONTAINERS}"


def _is_transport_stream(head: bytes) -> bool:
    """Whether packets begin with a sync byte: packets of 188 bytes, of 192 with a time stamp before
    each (Blu-ray, AVCHD), or of 204 with parity after each. Three packets suffice at the start of
    the file; a broadcast recording starts within a packet, and then five are needed."""
    for step, first in ((188, 0), (192, 4), (204, 0)):
        for start in (first, *range(step)):
            num = 3 if start == first else 5
            packets = head[start : start + (num - 1) * step + 1 : step]
            if packets == b"G" * num:
                return True
    return False


def _id3_bytes(head: bytes) -> int:
    """The length of an ID3v2 tag with its header: four times seven bits."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return size + 10


# ------------------------------------------------------------------------------ frames of sound


def _has_frames(head: bytes, frame_bytes: _FrameBytes) -> bool:
    """Whether a frame is at the start, followed by another if the file is long enough. If the first
    frame is elsewhere (recordings of streams, tags with a wrong length), four must follow."""
    first = frame_bytes(head)
    behind = head[first : first + 4]
    if first and (len(behind) < 4 or behind.startswith((b"TAG", b"ID3", b"APET"))):
        return True
    if _are_frames(head, 0, frame_bytes, num=2):
        return True
    starts = (at for at, byte in enumerate(head) if at and byte in (0xFF, 0x56))
    return any(_are_frames(head, at, frame_bytes, num=4) for at in starts)


def _are_frames(head: bytes, at: int, frame_bytes: _FrameBytes, num: int) -> bool:
    for _ in range(num):
        size = frame_bytes(head[at : at + 8])
        if not size:
            return False
        at += size
    return True


def _adts_bytes(head: bytes) -> int:
    """The length of an ADTS frame (ISO 14496-3, 1.A.2.2); 0 where none begins: twelve bits of sync,
    a layer of 0, which MPEG audio never has, and one of 13 rates."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 0xF > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


def _loas_bytes(head: bytes) -> int:
    """The length of a LOAS frame (ISO 14496-3, 1.7.2): eleven bits of sync, thirteen of length."""
    if len(head) < 3 or head[0] != 0x56 or head[1] & 0xE0 != 0xE0:
        return 0
    return ((head[1] & 0x1F) << 8 | head[2]) + 3


# kbit/s by bits of the header, of layers 1, 2 and 3 of MPEG-1, and of layer 1 and the others of
# MPEG-2 (ISO 11172-3, 2.4.2.3; ISO 13818-3, 2.4.2.3).
_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)


def _mpeg_bytes(head: bytes) -> int:
    """The length of a frame of MPEG audio; 0 where none begins: eleven bits of sync, a version, a
    layer, a bit rate and a rate that there are."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return 0
    generation = 1 if version == 3 else 2
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = _KBITS[generation, layer][bits - 1]
    if layer == 1:
        return (12_000 * kbits // rate_hz + padding) * 4
    samples = 576 if layer == 3 and generation == 2 else 1152
    return samples // 8 * 1000 * kbits // rate_hz + padding


# ---------------------------------------------------------------------------- what is not read


def _raw_pictures(head: bytes) -> _Other | None:
    """DV and the bare streams of H.264 and HEVC, which have no times."""
    if head[:3] == b"\x1f\x07\x00" and head[80:81] in (b"\x3f", b"\xbf", b"\xff"):
        return _Other("raw DV")
    start = 4 if head.startswith(b"\x00\x00\x00\x01") else 3
    if not head.startswith((b"\x00\x00\x00\x01", b"\x00\x00\x01")) or len(head) <= start:
        return None
    byte = head[start]
    if byte in (0x09, 0x27, 0x47, 0x67):  # a delimiter, or the first parameters
        return _Other("raw H.264", options="-framerate 25", copies=True)
    if byte >> 1 in (32, 33, 34, 35):
        return _Other("raw HEVC", options="-framerate 25", copies=True)
    return None
