"""Reads properties of pictures from a few bits of their compressed packets, without decoding.

Decoders differ in what FFmpeg's `skip_frame` skips: libdav1d reads the setting only when it opens,
VP8's keeps tables of skipped pictures, and HEVC's skips pictures that a higher temporal layer may
refer to. Therefore packets are skipped only for the codecs listed here, each for a reason in its
standard.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import av

# none: every packet is decoded. groups: groups of pictures (key frame to key frame) without a
# wanted picture are skipped. nonref: unreferenced pictures in the other groups are skipped too.
Skipping = Literal["none", "groups", "nonref"]

# FFmpeg's decoders skip before they touch a slice: in H.264 pictures of nal_ref_idc 0 (7.4.1), in
# MPEG-1, 2 and 4 B pictures, which are no references there; for HEVC see `may_be_skipped`.
_NONREF = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
# In these codecs, pictures after a key frame never refer to pictures before it.
_GROUPS = frozenset("vp8 vp9 av1 libdav1d msmpeg4 wmv1 wmv2 flv theora mjpeg prores".split())

# Codecs whose pictures refer to no other, and FFV1, whose containers mark key frames correctly:
# here several key frames in a row are plausible.
_INTRA = frozenset(
    "mjpeg mjpegb prores jpeg2000 dnxhd dvvideo rawvideo v210 v308 v410 ffv1 ffvhuff huffyuv "
    "utvideo magicyuv".split()
)

# Types of NAL units, and of SEI messages.
_H264_IDR, _H264_SEI, _RECOVERY_POINT = 5, 6, 6
_HEVC_IRAP, _HEVC_SLICES = range(16, 24), range(32)
# Types of AV1's open bitstream units.
_AV1_FRAMES = (3, 6)
# FFmpeg's MAX_NVOP_SIZE: an MPEG-4 packet of at most this size repeats the previous picture.
_MAX_NVOP_BYTES = 19


def skipping_of(packets: Sequence[av.Packet]) -> Skipping:
    """How packets of the stream can be skipped without changing any decoded picture."""
    name = _codec(packets[0])
    if name == "mpeg4" and any(map(_is_packed, packets)):
        return "none"
    if name in _NONREF:
        return "nonref"
    if name == "mjpeg" and not all(map(_has_tables, packets)):
        return "none"
    return "groups" if name in _GROUPS else "none"


def is_hidden(packet: av.Packet) -> bool:
    """Whether the packet's picture is a reference only and never shown.

    libvpx writes "alternate reference" pictures in this way: those of VP8 always have a separate
    packet, those of VP9 if they are not in a superframe.
    """
    name = _codec(packet)
    if name == "vp8":  # RFC 6386, 9.1: show_frame is the fifth bit
        return packet.size > 0 and not memoryview(packet)[0] & 0x10
    if name == "vp9" and packet.size > 1:
        return not _is_superframe(packet) and not _Vp9Header.of(packet).is_shown
    return False


def repeats_picture(packet: av.Packet) -> bool:
    """Whether the packet repeats the previous picture, so that the decoder returns none for it."""
    return _codec(packet) == "mpeg4" and packet.size <= _MAX_NVOP_BYTES


def may_begin_group(packet: av.Packet, before: av.Packet | None) -> bool:
    """Whether a group of pictures begins with the packet, according to container and packet.

    A container that marks every picture as a key frame may have no information: MP4 without a table
    of key frames, AVI with H.263. Then the packet itself must be an intra picture; if that cannot
    be read from it, decoding starts at an earlier packet.

    before: the stream's packet before this one in the file
    """
    if not packet.is_keyframe or packet.size == 0:
        return False
    if before is None or not before.is_keyframe:
        return True
    name = _codec(packet)
    if name in _CLEAN_TOLD:
        return _is_clean(packet, name, _NalUnits.of(packet))
    return name in _INTRA or (name in INTRA_TOLD and INTRA_TOLD[name](bytes(packet)))


def group_starts(packets: Sequence[av.Packet]) -> list[int]:
    """Indices of the packets at which decoding may begin: the first, and every key frame such that
    later pictures, except those shown before it, do not refer to pictures before it.

    Not all marked key frames qualify: after those of x264's intra refresh and of some cameras,
    pictures refer to earlier ones.
    """
    name = _codec(packets[0])
    units = _NalUnits.of(packets[0])
    return [
        index
        for index, packet in enumerate(packets)
        if index == 0 or (packet.is_keyframe and _is_clean(packet, name, units))
    ]


def may_be_skipped(packets: Sequence[av.Packet]) -> list[bool]:
    """For each packet, whether a decoder that skips unreferenced pictures may skip it.

    In HEVC (3.161), only in the highest temporal layer: higher layers may refer to a "sub-layer
    non-reference picture" of a lower one.
    """
    units = _NalUnits.of(packets[0])
    if units is None or not units.is_hevc:
        return [True] * len(packets)
    layers = [units.first_slice(packet)[1] for packet in packets]
    return [layer == max(layers) for layer in layers]


def _codec(packet: av.Packet) -> str:
    return packet.stream.codec_context.name


def _is_clean(packet: av.Packet, name: str, units: "_NalUnits | None") -> bool:
    if units is not None:
        return units.is_clean(packet)
    if name == "vp8":
        return packet.size > 0 and not memoryview(packet)[0] & 1
    if name == "vp9":
        return packet.size > 1 and _Vp9Header.of(packet).is_shown_key
    if name in ("av1", "libdav1d"):
        return _is_shown_av1_key(bytes(packet))
    return True  # whether it is intra-coded is seen once it is decoded


def _is_packed(packet: av.Packet) -> bool:
    """Whether an MPEG-4 packet holds two pictures, as DivX packed B pictures; the decoder returns
    the second with the next packet."""
    return bytes(packet).count(b"\0\0\1\xb6") > 1


def _has_tables(packet: av.Packet) -> bool:
    """Whether a JPEG picture has its own Huffman and quantisation tables; without them the decoder
    uses those of the previous picture."""
    head = bytes(memoryview(packet)[:4096])
    return b"\xff\xc4" in head and b"\xff\xdb" in head


# ------------------------------------------------------------------------ MPEG-1, 2, 4 and H.263


def _is_intra_mpeg2(data: bytes) -> bool:
    """By the first picture header: picture_coding_type (ISO 13818-2, 6.3.9)."""
    at = data.find(b"\0\0\1\0")
    return 0 <= at < len(data) - 5 and data[at + 5] >> 3 & 7 == 1


def _is_intra_mpeg4(data: bytes) -> bool:
    """vop_coding_type (ISO 14496-2, 6.3.5)"""
    at = data.find(b"\0\0\1\xb6")
    return 0 <= at < len(data) - 4 and data[at + 4] >> 6 == 0


def _is_intra_h263(data: bytes) -> bool:
    """Picture coding type, in PTYPE or, where that is extended, in MPPTYPE (H.263, 5.1.3 f.)."""
    bits = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def read(at: int, num: int) -> int:
        return bits >> (64 - at - num) & ((1 << num) - 1)

    if read(0, 22) != 0b100000:
        return False
    if read(35, 3) != 0b111:  # the source format
        return read(38, 1) == 0
    return read(59 if read(38, 3) == 1 else 41, 3) == 0


_CLEAN_TOLD = frozenset("h264 hevc vp8 vp9 av1 libdav1d".split())
# By codec: whether the picture of a packet refers to no other.
INTRA_TOLD: dict[str, Callable[[bytes], bool]] = {
    "mpeg1video": _is_intra_mpeg2,
    "mpeg2video": _is_intra_mpeg2,
    "mpeg4": _is_intra_mpeg4,
    "h263": _is_intra_h263,
}


# ----------------------------------------------------------------------------------- VP9 and AV1


def _is_superframe(packet: av.Packet) -> bool:
    """VP9, annex B: several pictures, the last of them shown."""
    return memoryview(packet)[packet.size - 1] & 0xE0 == 0xC0


@dataclass(frozen=True, kw_only=True)
class _Vp9Header:
    """The first bits of a picture (VP9, 6.2), of a superframe's first one."""

    is_shown: bool
    is_shown_key: bool

    @classmethod
    def of(cls, packet: av.Packet) -> "_Vp9Header":
        bits = f"{int.from_bytes(bytes(memoryview(packet)[:2]), 'big'):016b}"
        at = 5 if bits[2:4] == "11" else 4  # behind the marker and the profile
        shows_existing, is_inter, shown = (bit == "1" for bit in bits[at : at + 3])
        return cls(
            is_shown=shows_existing or shown,
            is_shown_key=not shows_existing and not is_inter and shown,
        )


def _is_shown_av1_key(data: bytes) -> bool:
    """Whether a temporal unit begins with a key frame that is shown at once (AV1, 5.9.2). After a
    key frame that is shown later ("forward key frame"), pictures refer to earlier ones."""
    at = 0
    while at < len(data):
        kind, is_extended, has_size = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if is_extended else 1
        size, shift = 0, 0
        while has_size and at < len(data):
            size |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        if kind in _AV1_FRAMES:  # show_existing_frame 0, frame_type 0, show_frame 1
            return at < len(data) and data[at] >> 4 == 0b0001
        if not has_size:
            return False
        at += size
    return False


# -------------------------------------------------------------------------------- H.264 and HEVC


@dataclass(frozen=True, kw_only=True)
class _NalUnits:
    """Reads the NAL units of H.264 or HEVC packets.

    length_bytes: size of the length field before each unit; 0 if start codes separate the units
    """

    is_hevc: bool
    length_bytes: int

    @classmethod
    def of(cls, packet: av.Packet) -> "_NalUnits | None":
        """None for other codecs."""
        name, extradata = _codec(packet), packet.stream.codec_context.extradata or b""
        if name not in ("h264", "hevc"):
            return None
        at = 21 if name == "hevc" else 4  # ISO 14496-15: lengthSizeMinusOne
        has_lengths = len(extradata) > at and extradata[0] == 1
        length_bytes = (extradata[at] & 3) + 1 if has_lengths else 0
        return cls(is_hevc=name == "hevc", length_bytes=length_bytes)

    def is_clean(self, packet: av.Packet) -> bool:
        if self.is_hevc:
            return self.first_slice(packet)[0] in _HEVC_IRAP
        return any(
            unit[0] & 31 == _H264_IDR or (unit[0] & 31 == _H264_SEI and _recovers_at_once(unit))
            for unit in self._read(packet)
        )

    def first_slice(self, packet: av.Packet) -> tuple[int, int]:
        """Type and temporal layer of an HEVC picture's first slice; (-1, 0) without one."""
        for unit in self._read(packet):
            if unit[0] >> 1 & 63 in _HEVC_SLICES and len(unit) > 1:
                return unit[0] >> 1 & 63, (unit[1] & 7) - 1
        return -1, 0

    def _read(self, packet: av.Packet) -> Iterator[bytes]:
        data = bytes(packet)
        return _by_lengths(data, self.length_bytes) if self.length_bytes else _by_codes(data)


def _by_lengths(data: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(data):
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start], "big")
        if at > start:
            yield data[start:at]


def _by_codes(data: bytes) -> Iterator[bytes]:
    start = data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        unit = data[start + 3 : end if end >= 0 else len(data)]
        if unit:
            yield unit
        start = end


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit of H.264 marks a recovery point at distance 0 (D.2.8): this picture and
    all later ones are correct."""
    data, at = unit.replace(b"\0\0\3", b"\0\0"), 1
    while at + 2 < len(data):
        header = []
        for _ in range(2):  # type and size: 255 for each byte 0xff, and then a last byte
            value = 0
            while at < len(data) and data[at] == 0xFF:
                value, at = value + 255, at + 1
            if at == len(data):
                return False
            header.append(value + data[at])
            at += 1
        kind, size = header
        if kind == _RECOVERY_POINT:  # recovery_frame_cnt, an Exp-Golomb code: 0 is the bit 1
            return at < len(data) and bool(data[at] & 0x80)
        at += size
    return False
