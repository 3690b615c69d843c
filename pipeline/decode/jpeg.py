"""Encodes a picture as JPEG with the libraries that decode media, so that no other is loaded."""

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

# FFmpeg's scale, 2 (best) to 31.
_QUALITY = 5


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [height, width, 3], RGB -> the bytes of a JPEG file."""
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.thread_count = 1
    encoder.qmin = encoder.qmax = _QUALITY
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)]))
