"""Makes the media file of one planned clip."""

import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.sample.face import Look
from pipeline.sample.media import write_media
from pipeline.sample.motion import FRAME_S, poses
from pipeline.sample.picture import draw_frames
from pipeline.sample.plan import SPEAKERS, ClipPlan
from pipeline.sample.sound import Layout, mix_sound
from pipeline.sample.speech import ESPEAK_RATE_HZ, VOICES, loudness, speak

MIN_DURATION_S, MAX_DURATION_S = 2.02, 5.95
SAMPLES_PER_FRAME = 2002  # exact number for sound at 48 kHz and 24000/1001 frames per second


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip in memory. frames: one yuv420p frame each; sound: [channels, samples]."""

    frames: list[av.VideoFrame]
    sound: NDArray[np.float32]
    layout: Layout

    @property
    def duration_s(self) -> float:
        return len(self.frames) * FRAME_S


def make_clip(plan: ClipPlan) -> Clip:
    """Draws and speaks a clip. The same plan gives the same clip in any process and any order."""
    rng = random.Random(plan.seed)
    speaker = SPEAKERS.index(plan.speaker)
    speech = speak(plan.text, voice=VOICES[speaker], emotion=plan.voice, rng=rng)
    lead_s, tail_s = rng.uniform(0.15, 0.3), rng.uniform(0.2, 0.35)
    duration_s = lead_s + len(speech) / ESPEAK_RATE_HZ + tail_s
    duration_s = min(MAX_DURATION_S, max(MIN_DURATION_S + rng.uniform(0, 0.1), duration_s))
    num_frames = round(duration_s / FRAME_S)
    layout: Layout = "5.1" if plan.surround else "stereo"
    sound = mix_sound(
        speech,
        layout=layout,
        lead_s=lead_s,
        num_samples=num_frames * SAMPLES_PER_FRAME,
        rng=rng,
    )
    positions = poses(_loudness(speech, lead_s, num_frames), plan.face, rng=rng)
    look = Look.of(random.Random(plan.speaker))
    frames = draw_frames(positions, look=look, emotion=plan.face, room=plan.room, rng=rng)
    return Clip(frames=list(frames), sound=sound, layout=layout)


def write_clip(plan: ClipPlan, path: Path) -> float:
    """Makes a clip and writes it; returns its duration in seconds. Raises OSError."""
    clip = make_clip(plan)
    write_media(path, enumerate(clip.frames), clip.sound, layout=clip.layout)
    return clip.duration_s


def _loudness(speech: NDArray[np.float32], lead_s: float, num_frames: int) -> NDArray[np.float32]:
    """Loudness of the speech at the time of each frame: float32 [num_frames]."""
    times = np.arange(num_frames) * FRAME_S - lead_s
    samples = np.round(times * ESPEAK_RATE_HZ).astype(int)
    heard = (samples >= 0) & (samples < len(speech))
    smooth = loudness(speech, hop=1)
    return np.where(heard, smooth[np.clip(samples, 0, len(speech) - 1)], 0).astype(np.float32)
