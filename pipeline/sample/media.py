"""Writes frames and sound to an MP4 file like MELD's: H.264 with B-frames, and AAC."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.sample.motion import FRAME_RATE
from pipeline.sample.scene import HEIGHT, WIDTH
from pipeline.sample.sound import RATE_HZ, Layout

_TIME_BASE = Fraction(FRAME_RATE[1], FRAME_RATE[0])
# The fastest preset, but with the unreferenced B-frames that real clips have. One thread, because
# the bytes must not depend on the number of cores, and clips are made in parallel anyway.
_X264 = {"preset": "ultrafast", "qp": "22", "bf": "3", "threads": "1"}
_AAC_BITS_PER_S: dict[Layout, int] = {"5.1": 256_000, "stereo": 128_000}


def write_media(
    path: Path,
    frames: Iterable[tuple[int, av.VideoFrame]] | None,
    sound: NDArray[np.float32] | None,
    *,
    layout: Layout,
    index_first: bool = False,
) -> None:
    """Writes or replaces `path`; None for `frames` or `sound` leaves that stream out.

    frames: (position in frames of 24000/1001 s, picture), ascending
    sound:  [channels, samples] at 48 kHz
    index_first: write the moov atom before the media data ("faststart") instead of after it
    Raises OSError.
    """
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = _add_video(container) if frames is not None else None
        audio = _add_audio(container, layout) if sound is not None else None
        if video is not None and frames is not None:
            for position, frame in frames:
                frame.pts, frame.time_base = position, _TIME_BASE
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = RATE_HZ, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def _add_video(container: av.container.OutputContainer) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(*FRAME_RATE))
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    stream.codec_context.thread_count = 1
    stream.options = _X264
    return stream


def _add_audio(container: av.container.OutputContainer, layout: Layout) -> av.AudioStream:
    # The default coder takes three times as long for the same bit rate.
    stream = container.add_stream("aac", rate=RATE_HZ, options={"aac_coder": "fast"})
    stream.layout, stream.bit_rate = layout, _AAC_BITS_PER_S[layout]
    return stream
