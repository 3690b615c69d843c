"""The length and the streams of a media file, without decoding."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from pipeline.decode.container import (
    MEDIA_ERRORS,
    check_file,
    declared_length,
    find_stream,
    open_container,
    origin_s,
    reason,
)
from pipeline.errors import ClipError
from pipeline.schema import MEDIA, Modality


@dataclass(frozen=True, kw_only=True)
class MediaLength:
    """modalities: of "video" and "audio", those that can be decoded

    duration_ms: from the start of the file (see `MediaSpan`) to the end of its last stream
    missing: why one of the two is missing
    num_streams: streams of all kinds, including those that are never read
    num_pixels: pixels of one frame of its largest video stream; 0 without video
    num_frames: frames by the headers, or by length and rate; 0 if unknown
    """

    duration_ms: int
    modalities: tuple[Modality, ...]
    missing: dict[Modality, str]
    num_streams: int
    num_pixels: int
    num_frames: int

    @property
    def has_video(self) -> bool:
        return "video" in self.modalities


def measure_media(path: Path) -> MediaLength:
    """Uses the headers if they declare the length of each stream; else reads all packet times.

    Raises ClipError if the file must not be opened, or has neither video nor audio.
    """
    with open_container(check_file(path)) as container:
        streams: dict[Modality, av.stream.Stream] = {}
        missing: dict[Modality, str] = {}
        for modality in MEDIA:
            try:
                streams[modality] = find_stream(container, modality)
            except ClipError as error:
                missing[modality] = error.message
        if not streams:
            raise ClipError("no_media", "; ".join(missing.values()))
        declared = [declared_length(container, stream).end_s for stream in streams.values()]
        ends_s = [end_s for end_s in declared if end_s is not None]
        if len(ends_s) < len(declared):
            last_s = _last_end(container, list(streams.values()))
            ends_s = [float(last_s - origin_s(container))]
        length_s = max(ends_s)
        pictures = _pictures(container)
        return MediaLength(
            duration_ms=max(round(length_s * 1000), 0),
            modalities=tuple(streams),
            missing=missing,
            num_streams=len(container.streams),
            num_pixels=max((each.width * each.height for each in pictures), default=0),
            num_frames=max((_num_frames(each, length_s) for each in pictures), default=0),
        )


def _pictures(container: "av.container.InputContainer") -> list["av.VideoStream"]:
    """Video streams, including those that cannot be decoded, without cover pictures."""
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]


def _num_frames(stream: "av.VideoStream", length_s: float) -> int:
    return stream.frames or round(length_s * float(stream.average_rate or 0))


def _last_end(
    container: "av.container.InputContainer", streams: list["av.stream.Stream"]
) -> Fraction:
    end = Fraction(0)
    try:
        for packet in container.demux(streams):
            tick = packet.pts if packet.pts is not None else packet.dts
            if tick is not None and packet.time_base is not None:
                end = max(end, (tick + (packet.duration or 0)) * packet.time_base)
    except MEDIA_ERRORS as error:
        if not end:
            raise ClipError("unreadable", reason(error)) from error
    return end
