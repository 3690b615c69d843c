"""Generates a short talk of two people as one file with a subtitle track. It is the sample on the
service's page, and the source of a bundle's golden clips.

    python -m pipeline.sample.talk pipeline/sample/talk.mp4

On the same machine, the bytes are reproducible.
"""

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.sample.clip import make_clip
from pipeline.sample.motion import FRAME_RATE
from pipeline.sample.plan import SPEAKERS, ClipPlan
from pipeline.sample.sound import RATE_HZ
from pipeline.schema import ClipKey

# Speaker, words and emotion. The sentences are our own. OpenCV's detector sees the first speaker's
# face (`--video faces`), as it does not see everybody's here.
LINES = (
    (8, "I got the job! I am so happy!", "joy", "positive"),
    (1, "What? Oh my God, are you serious?", "surprise", "positive"),
    (8, "I start on Monday, at the desk by the window.", "neutral", "neutral"),
    (1, "And you tell me this now? I hate it when you do that!", "anger", "negative"),
    (8, "I am so sorry. I really am.", "sadness", "negative"),
)
_SIZE = (480, 270)  # a third of the size of a corpus clip, because it is sent over the network
_X264 = {"preset": "veryslow", "crf": "28", "threads": "1"}
_AAC_BITS_PER_S = 64_000
_MS = Fraction(1, 1000)
# FFmpeg's muxer reads the style of a subtitle track from this header.
_HEADER = b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name\nStyle: Default\n"

Cue = tuple[int, int, str]  # start and end in ms, and the words


def main() -> None:
    write_talk(Path(sys.argv[1]))


def write_talk(path: Path) -> None:
    """Raises OSError."""
    frames: list[av.VideoFrame] = []
    sounds: list[NDArray[np.float32]] = []
    cues: list[Cue] = []
    for number, (speaker, text, emotion, sentiment) in enumerate(LINES):
        plan = ClipPlan(
            key=ClipKey("test", 0, number),
            seed=f"talk {number}",
            text=text,
            speaker=SPEAKERS[speaker],
            emotion=emotion,
            sentiment=sentiment,
            carriers=("words", "voice", "face"),
            room=0,
            surround=False,
            season=1,
            episode=1,
        )
        clip = make_clip(plan)
        start_ms = round(1000 * len(frames) * FRAME_RATE[1] / FRAME_RATE[0])
        cues.append(
            (start_ms, start_ms + round(1000 * clip.duration_s), f"{plan.speaker.upper()}: {text}")
        )
        frames += clip.frames
        sounds.append(clip.sound)
    _write(path, frames, np.concatenate(sounds, axis=1), cues)


def _write(
    path: Path,
    frames: Sequence[av.VideoFrame],
    sound: NDArray[np.float32],
    cues: Sequence[Cue],
) -> None:
    """sound: [2, samples] at 48 kHz"""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=Fraction(*FRAME_RATE))
        (video.width, video.height), video.pix_fmt = _SIZE, "yuv420p"
        video.codec_context.thread_count = 1
        video.options = _X264
        audio = container.add_stream("aac", rate=RATE_HZ)
        audio.layout, audio.bit_rate = "stereo", _AAC_BITS_PER_S
        words = container.add_stream("mov_text")
        words.time_base = _MS
        words.codec_context.subtitle_header = _HEADER
        words.metadata["language"] = "eng"

        packets: list[av.Packet] = []
        for position, frame in enumerate(frames):
            small = frame.reformat(*_SIZE)
            small.pts, small.time_base = position, Fraction(FRAME_RATE[1], FRAME_RATE[0])
            packets += video.encode(small)
        packets += video.encode()
        heard = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        heard.sample_rate, heard.pts = RATE_HZ, 0
        packets += [*audio.encode(heard), *audio.encode()]
        for start_ms, end_ms, text in cues:
            content = text.encode()
            packet = av.Packet(len(content).to_bytes(2, "big") + content)
            packet.stream, packet.time_base = words, _MS
            packet.pts = packet.dts = start_ms
            packet.duration = end_ms - start_ms
            packets.append(packet)
        for packet in sorted(packets, key=_when):
            container.mux(packet)


def _when(packet: av.Packet) -> Fraction:
    return Fraction(packet.dts or 0) * Fraction(packet.time_base or 0)


if __name__ == "__main__":
    main()
