"""Chooses the stream to read: FFmpeg's best, but for audio the first track that has sound.

Recorders write one track per microphone input, also for unused inputs; phones write a track in a
proprietary codec beside a common one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from pipeline.decode.channels import channel_names, read_part, settle_channels
from pipeline.decode.container import (
    MAX_PACKET_BYTES,
    MEDIA_ERRORS,
    bind_decoder,
    find_candidates,
    find_stream,
    one_packet,
    open_container,
)
from pipeline.errors import ClipError
from pipeline.schema import Modality

# A track has sound if so much of it is louder than -60 dB of full scale; a click does not count.
_HEARD_S = 0.1
_HEARD_LEVEL = 1e-3
# It counts as silent if it has no sound in its first ten minutes.
_LISTENED_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Track:
    """A stream; limits are set on its decoder.

    channels: for sound, the names of its channels in the container
    warning:  why a track other than the best was chosen; None if it is the best
    """

    stream: "av.stream.Stream"
    channels: tuple[str, ...] = ()
    warning: ClipError | None = None


def find_track(container: "av.container.InputContainer", modality: Modality, path: Path) -> Track:
    """Finds the stream to read for "video" or "audio", and sets limits on its decoder.

    If a file has several sound tracks, `path` is opened again for each track that is checked, and
    read up to its first tenth of a second of sound.

    Raises ClipError if there is none, or none that may be decoded.
    """
    if modality != "audio":
        return Track(stream=find_stream(container, modality))
    streams = find_candidates(container, "audio")
    refused: dict[int, ClipError] = {}
    usable: list[Track] = []
    for stream in streams:
        try:
            bind_decoder(stream, "audio")
            channels = settle_channels(stream.codec_context)
        except ClipError as error:
            refused[stream.index] = error
        else:
            usable.append(Track(stream=stream, channels=channels))
    if not usable:
        raise refused[streams[0].index]
    taken = usable[0]
    if len(usable) > 1:
        taken = next((each for each in usable if _has_sound(path, each.stream.index)), taken)
    if taken.stream is streams[0]:
        return taken
    best, other = (_number(container, each) for each in (streams[0], taken.stream))
    reason = refused.get(streams[0].index)
    why = "is silent" if reason is None else f"cannot be read: {reason.message}"
    message = f"sound track {other} was taken, as track {best} {why}"
    return replace(taken, warning=ClipError("other_track", message))


def _number(container: "av.container.InputContainer", stream: "av.stream.Stream") -> int:
    """The number among the sound tracks of the file, from 1."""
    return 1 + [each.index for each in container.streams.audio].index(stream.index)


def _has_sound(path: Path, index: int) -> bool:
    """Whether the track has sound; one that cannot be decoded has none."""
    heard_s = listened_s = 0.0
    num_bytes = 0
    try:
        with open_container(path) as container:
            stream = container.streams[index]
            bind_decoder(stream, "audio")
            settle_channels(stream.codec_context)
            for packet in container.demux(stream):
                num_bytes += packet.size
                for part_s, level in _levels(packet):
                    listened_s += part_s
                    heard_s += part_s if level > _HEARD_LEVEL else 0.0
                if heard_s >= _HEARD_S:
                    return True
                if listened_s > _LISTENED_S or num_bytes > MAX_PACKET_BYTES:
                    break
    except (ClipError, *MEDIA_ERRORS):
        pass
    return False


def _levels(packet: av.Packet) -> list[tuple[float, float]]:
    """For each frame, its length in seconds and the root mean square of its loudest channel."""
    levels = []
    try:
        with one_packet():
            frames = packet.decode()
        for frame in frames:
            part = read_part(frame, channel_names(frame))
            if part.num_samples and frame.rate:
                power = float(part.energies.max()) / part.num_samples
                levels.append((part.num_samples / frame.rate, float(np.sqrt(power))))
    except (FFmpegError, ValueError):
        pass
    return levels
