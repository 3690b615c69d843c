"""Reads the subtitle tracks in a media file, with the cues of text tracks."""

from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.decode.container import (
    MEDIA_ERRORS,
    check_file,
    open_container,
    origin_s,
    reason,
)
from pipeline.errors import ClipError

# FFmpeg's names of the codecs of text tracks in MP4, Matroska and WebM.
_TEXT_CODECS = frozenset("mov_text subrip ass webvtt text".split())
# A cue is a few lines; an hour of speech has a thousand of them.
_MOST_CUE_BYTES = 64 * 1024
_MOST_CUES = 100_000


@dataclass(frozen=True, kw_only=True)
class SubtitleCue:
    """One cue of a track.

    start_ms: on the clock of the file (see `MediaSpan`); negative in some damaged files
    end_ms:   None if the track has no end
    text:     with the markup of SubStation Alpha or WebVTT
    name:     the speaker, if the track has a field for it; else ""
    """

    start_ms: int
    end_ms: int | None
    text: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class SubtitleTrack:
    """number: among the subtitle tracks of the file, from 1; language: its name in the file
    ("eng"), "" if unknown

    is_pictures: the cues are pictures of words, as on DVDs and Blu-rays; none of them is read
    num_damaged: cues that could not be read
    """

    number: int
    codec: str
    language: str = ""
    is_default: bool = False
    is_forced: bool = False
    is_commentary: bool = False
    is_pictures: bool = False
    cues: tuple[SubtitleCue, ...] = ()
    num_damaged: int = 0


def read_subtitle_tracks(path: Path) -> tuple[SubtitleTrack, ...]:
    """Every subtitle track of a file, in its order. The file is read to its end if one is text.

    Raises ClipError if the file must not be opened.
    """
    with open_container(check_file(path)) as container:
        readers = [_Reader(stream, number) for number, stream in _streams(container)]
        by_index = {reader.stream.index: reader for reader in readers if reader.is_text}
        if by_index:
            origin = origin_s(container)
            try:
                for packet in container.demux([reader.stream for reader in by_index.values()]):
                    by_index[packet.stream.index].take(packet, float(origin))
            except MEDIA_ERRORS as error:
                if not any(reader.cues for reader in readers):
                    raise ClipError("unreadable", reason(error)) from error
        return tuple(reader.track() for reader in readers)


def _streams(
    container: "av.container.InputContainer",
) -> list[tuple[int, "av.subtitles.stream.SubtitleStream"]]:
    return list(enumerate(container.streams.subtitles, start=1))


class _Reader:
    """One track, and the cues read of it so far."""

    def __init__(self, stream: "av.subtitles.stream.SubtitleStream", number: int) -> None:
        self.stream, self._number = stream, number
        context = stream.codec_context
        self._codec = "unknown" if context is None else context.codec.canonical_name
        self.is_text = self._codec in _TEXT_CODECS
        if self.is_text:
            context.options = {"codec_whitelist": context.name}
        self.cues: list[SubtitleCue] = []
        self._num_damaged = 0

    def take(self, packet: av.Packet, origin_s: float) -> None:
        if packet.size == 0 or packet.pts is None or packet.time_base is None:
            return
        if packet.size > _MOST_CUE_BYTES or len(self.cues) >= _MOST_CUES:
            self._num_damaged += 1
            return
        start_ms = round(1000 * (float(packet.pts * packet.time_base) - origin_s))
        end_ms = None
        if packet.duration:
            end_s = float((packet.pts + packet.duration) * packet.time_base) - origin_s
            end_ms = round(1000 * end_s)
        try:
            parts = self._words(packet)
        except (FFmpegError, UnicodeDecodeError, IndexError):
            self._num_damaged += 1
            return
        self.cues += [
            SubtitleCue(start_ms=start_ms, end_ms=end_ms, text=text, name=name)
            for name, text in parts
            if text
        ]

    def _words(self, packet: av.Packet) -> list[tuple[str, str]]:
        """The speaker and the text."""
        if self._codec == "webvtt":  # FFmpeg would omit the speaker
            return [("", bytes(packet).decode().replace("\0", ""))]
        decoded = self.stream.codec_context.decode2(packet)
        lines = [] if decoded is None else [rect.ass.decode() for rect in decoded.rects]
        # ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text
        fields = [line.split(",", 8) for line in lines]
        return [(each[3], each[8]) for each in fields]

    def track(self) -> SubtitleTrack:
        context, disposition = self.stream.codec_context, self.stream.disposition
        return SubtitleTrack(
            number=self._number,
            codec=self._codec,
            language=self.stream.metadata.get("language", ""),
            is_default=bool(disposition & Disposition.default),
            is_forced=bool(disposition & Disposition.forced),
            is_commentary=bool(disposition & Disposition.comment),
            is_pictures=context is not None and context.codec.bitmap_sub,
            cues=tuple(self.cues),
            num_damaged=self._num_damaged,
        )
