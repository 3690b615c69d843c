"""Inspects a media file: its headers, or every packet."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
from av.error import FFmpegError

from pipeline.decode.channels import channel_names, read_part
from pipeline.decode.container import (
    MAX_PACKET_BYTES,
    MEDIA_ERRORS,
    TRUNCATION_SLACK_S,
    Declared,
    check_file,
    declared_length,
    hides_negative_times,
    one_packet,
    open_container,
    origin_s,
    reason,
)
from pipeline.decode.spans import decode_media
from pipeline.decode.tracks import Track, find_track
from pipeline.decode.window import end_tick, shown_tick
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MEDIA, ClipKey, LocatedClip, MediaSpan, Modality

# MELD's longest clip has 7,312 pictures; a slow core decodes at least 50 of them per second.
MAX_SECONDS_DEEP = 300.0

Stream = Literal["video", "audio"]
_STREAMS: tuple[Stream, ...] = ("video", "audio")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """num_frames: as decoded or as declared by the container; None if unknown."""

    codec: str
    length_s: float
    num_frames: int | None
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Sound:
    codec: str
    length_s: float
    channels: int
    rate_hz: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of a file or of one of its streams.

    code: as in a `ClipFailure` of extraction ("unreadable", "no_audio", "truncated", ...)
    """

    stream: Stream | None
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ClipInspection:
    """One media file. A stream that is missing or that is not read is None.

    bad_packets: packets that could not be decoded or gave a damaged picture; 0 unless deep
    """

    key: ClipKey
    path: Path | None
    deep: bool
    picture: Picture | None = None
    sound: Sound | None = None
    bad_packets: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def length_s(self) -> float | None:
        """The length of the video, or of the audio if there is no video."""
        stream = self.picture or self.sound
        return None if stream is None else stream.length_s

    @property
    def is_readable(self) -> bool:
        return self.picture is not None or self.sound is not None


def inspect_clip(
    clip: LocatedClip, *, deep: bool, modalities: Sequence[Modality] = MEDIA
) -> ClipInspection:
    """Reads the headers of a clip, and if `deep`, decodes all of its video and audio.

    modalities: the others are neither read nor reported

    Headers may declare more than a broken file has; they only show that a file was cut off.
    Never raises for a bad file: each problem becomes a `Problem`.
    """
    if clip.path is None:
        missing = ClipError("missing_file", clip.missing or "no media file")
        return unreadable(clip, missing, deep=deep)
    try:
        with open_container(check_file(clip.path)) as container:
            return _inspect(container, clip, clip.path, deep, modalities)
    except ClipError as error:
        return unreadable(clip, error, deep=deep)
    except MEDIA_ERRORS as error:
        return unreadable(clip, ClipError("unreadable", reason(error)), deep=deep)


def unreadable(clip: LocatedClip, error: ClipError, *, deep: bool) -> ClipInspection:
    """The inspection of an unreadable file."""
    problem = Problem(stream=None, code=error.code, message=error.message)
    return ClipInspection(key=clip.utterance.key, path=clip.path, deep=deep, problems=(problem,))


def _inspect(
    container: "av.container.InputContainer",
    clip: LocatedClip,
    path: Path,
    deep: bool,
    modalities: Sequence[Modality],
) -> ClipInspection:
    tracks, problems = _find_tracks(
        container, path, [name for name in _STREAMS if name in modalities]
    )
    streams = {name: track.stream for name, track in tracks.items()}
    problems += _cut_off(container, streams, path)
    declared = {name: declared_length(container, stream) for name, stream in streams.items()}
    lengths_s = {name: each.length_s or 0.0 for name, each in declared.items()}
    num_frames = _declared_frames(streams, lengths_s)
    bad_packets = 0
    if not deep and any(each.length_s is None for each in declared.values()):
        passed, _ = _read_all(container, streams, _Passed.note_time)
        lengths_s = {name: each.length_s for name, each in passed.items()}
    if deep and streams:
        decoded, unread = _read_all(container, streams, _decode_packet)
        ends_s = {name: each.last_s - origin_s(container) for name, each in decoded.items()}
        longest_s = max(*ends_s.values(), unread.last_s - origin_s(container))
        if not _has(problems, "truncated"):
            problems += _what_is_missing(ends_s, longest_s, declared)
        problems += _what_is_broken(decoded)
        if "audio" in decoded and decoded["audio"].num_decoded:
            problems += _what_has_no_waveform(path)
        lengths_s = {name: each.length_s for name, each in decoded.items()}
        num_frames = decoded["video"].num_decoded if "video" in decoded else None
        bad_packets = sum(each.num_bad for each in decoded.values())
        streams = {name: stream for name, stream in streams.items() if decoded[name].num_decoded}
    return ClipInspection(
        key=clip.utterance.key,
        path=path,
        deep=deep,
        picture=_picture(streams, lengths_s, num_frames),
        sound=_sound(streams, lengths_s, tracks),
        bad_packets=bad_packets,
        problems=tuple(problems),
    )


# ------------------------------------------------------------------------------------- headers


def _find_tracks(
    container: "av.container.InputContainer", path: Path, wanted: Sequence[Stream]
) -> tuple[dict[Stream, Track], list[Problem]]:
    tracks: dict[Stream, Track] = {}
    problems = []
    for name in wanted:
        try:
            tracks[name] = find_track(container, name, path)
        except ClipError as error:
            problems.append(Problem(stream=name, code=error.code, message=error.message))
    return tracks, problems


def _cut_off(
    container: "av.container.InputContainer",
    streams: Mapping[Stream, "av.stream.Stream"],
    path: Path,
) -> list[Problem]:
    """The index of an MP4 file has the place of each packet; the last must be within the file."""
    if "mp4" not in container.format.name:
        return []
    size = path.stat().st_size
    indices = [stream.index_entries for stream in streams.values()]
    ends = [index[len(index) - 1] for index in indices if len(index)]
    wanted = max((last.pos + last.size for last in ends), default=0)
    if wanted <= size:
        return []
    message = f"{size:,} of at least {wanted:,} bytes are there"
    return [Problem(stream=None, code="truncated", message=message)]


def _declared_frames(
    streams: Mapping[Stream, "av.stream.Stream"], lengths_s: Mapping[Stream, float]
) -> int | None:
    if "video" not in streams:
        return None
    if streams["video"].frames:  # includes frames that an edit list hides
        return int(streams["video"].frames) - _num_hidden(streams["video"])
    rate = streams["video"].average_rate  # Matroska and AVI do not declare the number
    return round(lengths_s["video"] * float(rate)) if rate and lengths_s["video"] else None


def _num_hidden(stream: "av.stream.Stream") -> int:
    return sum(entry.is_discard for entry in stream.index_entries)


def _picture(
    streams: Mapping[Stream, "av.stream.Stream"],
    lengths_s: Mapping[Stream, float],
    num_frames: int | None,
) -> Picture | None:
    if "video" not in streams:
        return None
    context = streams["video"].codec_context
    return Picture(
        codec=context.name,
        length_s=lengths_s["video"],
        num_frames=num_frames,
        width=context.width,
        height=context.height,
    )


def _sound(
    streams: Mapping[Stream, "av.stream.Stream"],
    lengths_s: Mapping[Stream, float],
    tracks: Mapping[Stream, Track],
) -> Sound | None:
    if "audio" not in streams:
        return None
    context = streams["audio"].codec_context
    return Sound(
        codec=context.name,
        length_s=lengths_s["audio"],
        channels=len(tracks["audio"].channels),  # the decoder may crash: `settle_channels`
        rate_hz=context.rate or 0,
    )


def _has(problems: list[Problem], code: str) -> bool:
    return any(problem.code == code for problem in problems)


# -------------------------------------------------------------------------------- every packet


@dataclass(kw_only=True)
class _Passed:
    """Results of one stream so far; times in seconds, of its packets that are shown.

    shown_from_s: packets before this are hidden
    has_begun: a key frame was found; before the first, nothing can be decoded, and nothing counts
        as missing, because the file may be cut out of a longer recording
    """

    shown_from_s: float = -math.inf
    has_begun: bool = False
    num_decoded: int = 0
    num_packets: int = 0
    num_bad: int = 0
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def length_s(self) -> float:
        return 0.0 if self.first_s is None else max(self.last_s - self.first_s, 0.0)

    def note_time(self, packet: av.Packet) -> None:
        tick, end = shown_tick(packet), end_tick(packet)
        if tick is None or end is None or packet.time_base is None:
            return
        start_s = max(float(tick * packet.time_base), self.shown_from_s)
        self.first_s = start_s if self.first_s is None else min(self.first_s, start_s)
        self.last_s = max(self.last_s, float(end * packet.time_base))


def _read_all(
    container: "av.container.InputContainer",
    streams: Mapping[Stream, "av.stream.Stream"],
    take: Callable[[_Passed, av.Packet], None],
) -> tuple[dict[Stream, _Passed], _Passed]:
    """Decodes the chosen streams; of all others, reads only the times.

    Raises ClipError at a limit; no results are kept then.
    """
    deadline = time.monotonic() + MAX_SECONDS_DEEP
    shown_from_s = 0.0 if hides_negative_times(container) else -math.inf
    passed = {name: _Passed(shown_from_s=shown_from_s) for name in streams}
    unread = _Passed(shown_from_s=shown_from_s)
    by_index = {stream.index: passed[name] for name, stream in streams.items()}
    num_bytes = 0
    for stream in streams.values():
        stream.codec_context.thread_count = 1  # many processes decode in parallel
    # A file whose packets end too early is recognised by its length.
    with contextlib.suppress(FFmpegError):
        for packet in container.demux():
            if packet.stream.index not in by_index:
                unread.note_time(packet)
                continue
            take(by_index[packet.stream.index], packet)
            num_bytes += packet.size
            if num_bytes > MAX_PACKET_BYTES:
                raise ClipError("too_large", f"more than {MAX_PACKET_BYTES >> 20} MiB of packets")
            if time.monotonic() > deadline:
                raise ClipError("timeout", f"not decoded within {MAX_SECONDS_DEEP:.0f} s")
    return passed, unread


def _decode_packet(decoded: _Passed, packet: av.Packet) -> None:
    if packet.size:  # 0: the flush at the end
        decoded.num_packets += 1
        decoded.note_time(packet)
    decoded.has_begun = decoded.has_begun or packet.is_keyframe
    try:
        with one_packet():
            frames = packet.decode()
        for frame in frames:
            decoded.num_decoded += 1
            decoded.num_bad += bool(frame.is_corrupt)
            if isinstance(frame, av.AudioFrame):
                read_part(frame, channel_names(frame))
    except (FFmpegError, ValueError):  # ValueError: not the layout or size it began with
        decoded.num_bad += decoded.has_begun


def _what_is_missing(
    ends_s: Mapping[Stream, float], longest_s: float, declared: Mapping[Stream, Declared]
) -> list[Problem]:
    """Both ends are on the clock of the file; `longest_s` is the end of the last stream."""
    problems = []
    for name, end_s in ends_s.items():
        what = {"video": "pictures", "audio": "sound"}[name]
        promise = declared[name]
        kept_s = longest_s if promise.is_of_file else end_s
        if promise.end_s is not None and promise.end_s - kept_s > TRUNCATION_SLACK_S:
            message = f"{max(end_s, 0.0):.1f} s of {promise.end_s:.1f} s of {what} are there"
            problems.append(Problem(stream=name, code="truncated", message=message))
    return problems


def _what_is_broken(decoded: Mapping[Stream, _Passed]) -> list[Problem]:
    problems = []
    for name, each in decoded.items():
        if not each.num_decoded:
            code = {"video": "no_frames", "audio": "no_samples"}[name]
            message = f"none of {each.num_packets} {name} packets could be decoded"
            problems.append(Problem(stream=name, code=code, message=message))
        elif each.num_bad:
            message = f"{each.num_bad} of {each.num_packets} {name} packets are broken"
            problems.append(Problem(stream=name, code="bad_packets", message=message))
    return problems


def _what_has_no_waveform(path: Path) -> list[Problem]:
    """Processes decoded samples with the code of extraction, so that whatever fails or crashes
    there does so here."""
    media = decode_media(path, MediaSpan(), DecodeConfig(), ["audio"])
    return [
        Problem(stream="audio", code=failure.code, message=failure.message)
        for failure in media.failures
        if failure.lost
    ]
