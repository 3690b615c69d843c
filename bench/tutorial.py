"""Extraction as the usual tutorials do it, rewritten for comparison.

The first 30 frames at 224x224 through OpenCV, an ffmpeg process to a wav file, a power mel
spectrogram, text padded to 128 tokens, everything float32, one clip at a time.
"""

import subprocess
import tempfile
import time
import wave
from collections.abc import Sequence
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import nn
from torchvision.models.video import r3d_18
from transformers import AutoConfig, AutoModel, AutoTokenizer

from pipeline.schema import LocatedClip

NUM_FRAMES = 30
FRAME_SIZE = 224
TEXT_TOKENS = 128
MEL_FRAMES = 300


class TutorialExtractor:
    """Three encoders with random weights, which are as fast as trained ones."""

    def __init__(self, text_folder: Path, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.tokenizer = AutoTokenizer.from_pretrained(text_folder)
        self.text = AutoModel.from_config(AutoConfig.from_pretrained(text_folder)).eval()
        self.video = r3d_18(weights=None).eval()
        self.audio = nn.Sequential(
            nn.Conv1d(64, 64, 3), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(64, 128, 3), nn.BatchNorm1d(128), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        ).eval()  # fmt: skip

    @torch.inference_mode()
    def extract(self, clip: LocatedClip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert clip.path is not None
        tokens = self.tokenizer(
            clip.utterance.text,
            padding="max_length",
            truncation=True,
            max_length=TEXT_TOKENS,
            return_tensors="pt",
        )
        frames = torch.from_numpy(_load_frames(clip.path)).permute(3, 0, 1, 2)[None]
        mel = _load_mel(clip.path)[None]
        return self.text(**tokens).pooler_output, self.video(frames), self.audio(mel)


def measure_tutorial(clips: Sequence[LocatedClip], text_folder: Path, num_threads: int) -> float:
    """Seconds per clip; the models are loaded and warm before the clock starts."""
    extractor = TutorialExtractor(text_folder, num_threads)
    extractor.extract(clips[0])
    started_s = time.perf_counter()
    for clip in clips:
        extractor.extract(clip)
    return (time.perf_counter() - started_s) / len(clips)


def _load_frames(path: Path) -> NDArray[np.float32]:
    """float32 [30, 224, 224, 3], the first frames, zero-padded."""
    capture = cv2.VideoCapture(str(path))
    frames = np.zeros((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), np.float32)
    for index in range(NUM_FRAMES):
        is_read, frame = capture.read()
        if not is_read:
            break
        frames[index] = cv2.resize(frame, (FRAME_SIZE, FRAME_SIZE)) / 255.0
    capture.release()
    return frames


def _load_mel(path: Path) -> torch.Tensor:
    """float32 [64, 300], padded or cropped."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "audio.wav"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-vn", "-acodec", "pcm_s16le"]
        subprocess.run(
            [*command, "-ar", "16000", "-ac", "1", str(wav)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with wave.open(str(wav)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
    mel = torchaudio.transforms.MelSpectrogram(16_000, n_mels=64, n_fft=1024, hop_length=512)(
        waveform
    )
    mel = (mel - mel.mean()) / (mel.std() + 1e-9)
    return nn.functional.pad(mel[:, :MEL_FRAMES], (0, max(MEL_FRAMES - mel.shape[1], 0)))
