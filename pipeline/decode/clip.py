"""Decodes a clip of a corpus, as one span of its file, into frames and a waveform."""

import contextlib
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode.container import (
    MEDIA_ERRORS,
    check_file,
    declared_length,
    find_stream,
    open_container,
    reason,
)
from pipeline.decode.ledger import Ledger
from pipeline.decode.orientation import Orientation
from pipeline.decode.spans import decode_media
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import (
    ClipFailure,
    DecodedClip,
    DecodedMedia,
    LocatedClip,
    MediaSpan,
    Modality,
    Utterance,
)

logger = logging.getLogger(__name__)

# If no picture was decoded by then, the size is that of the header.
_MAX_PACKETS_FOR_SIZE = 100


def decode_clip(
    clip: LocatedClip, config: DecodeConfig, modalities: Sequence[Modality]
) -> DecodedClip:
    """Decodes what `modalities` asks for; failures become entries of `failures`.

    It never raises for a bad file: an absent modality is None, with a failure in the ledger.
    """
    return as_clip(clip.utterance, _decode_whole(clip, config, modalities))


def as_clip(utterance: Utterance, media: DecodedMedia) -> DecodedClip:
    """The decoded media of a span as a clip of its utterance."""
    return DecodedClip(
        utterance=utterance,
        frames=media.frames,
        times_s=media.times_s,
        waveform=media.waveform,
        failures=tuple(
            ClipFailure(
                key=utterance.key,
                modality=failure.modality,
                stage="decode",
                code=failure.code,
                message=failure.message,
                lost=failure.lost,
            )
            for failure in media.failures
        ),
    )


def _decode_whole(
    clip: LocatedClip, config: DecodeConfig, modalities: Sequence[Modality]
) -> DecodedMedia:
    if clip.path is not None:
        return decode_media(clip.path, MediaSpan(), config, modalities)
    ledger = Ledger([name for name in ("video", "audio") if name in modalities])
    ledger.lose_all(ClipError("missing_file", clip.missing or "no media file"))
    return DecodedMedia(span=MediaSpan(), failures=ledger.entries)


def decode_still(path: Path, *, width: int) -> NDArray[np.uint8] | None:
    """Decodes the picture in the middle of a media file: uint8 [height, width, 3], RGB, with the
    given width and the aspect ratio of the picture. None if there is no picture."""
    try:
        with open_container(check_file(path)) as container:
            stream = find_stream(container, "video")
            declared = declared_length(container, stream)
            across, down = _upright_size(container, stream)
    except ClipError:
        return None
    height = round(width * down / across) if across and down else round(width * 9 / 16)
    height = min(max(height, 1), 4 * width)
    config = DecodeConfig(num_frames=1, frame_height=height, frame_width=width)
    end_s = declared.start_s if declared.end_s is None else declared.end_s
    middle_ms = round(max(declared.start_s + end_s, 0.0) * 500)
    middle = MediaSpan(start_ms=middle_ms, end_ms=middle_ms + 1)
    frames = decode_media(path, middle, config, ["video"]).frames
    if frames is None:  # the file was cut off before its middle
        frames = decode_media(path, MediaSpan(), config, ["video"]).frames
    return None if frames is None else frames[0]


def _upright_size(
    container: "av.container.InputContainer", stream: "av.stream.Stream"
) -> tuple[int, int]:
    """Width and height of the first picture as shown, in pixels; its rotation may be stored in the
    picture itself. 0 if unknown."""
    context = stream.codec_context
    context.thread_count = 1
    try:
        for packet in islice(container.demux(stream), _MAX_PACKETS_FOR_SIZE):
            with contextlib.suppress(FFmpegError):
                for frame in packet.decode():
                    orientation = Orientation.of(frame)
                    if orientation is not None and orientation.swaps_sides:
                        return frame.height, frame.width
                    return frame.width, frame.height
    except MEDIA_ERRORS as error:
        logger.debug("no picture to measure: %s", reason(error))
    return context.width, context.height
