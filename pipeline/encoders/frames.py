"""torchvision's image nets, frame by frame: `--video resnet18` and every other by its name.

    16 frames ── the net's own crop and normalisation ──> the net without its classifier
              ──> mean and standard deviation over the frames

The features of a frame are what the net's last linear layer reads: of a ResNet the global average,
of VGG16 fc7 (4,096), not the convolutions (25,088). Frames come in the size that the net's own
preset scales to, with their shape kept, and their axis does not reach the cache.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.video import Frames, graph_of_frames
from pipeline.encoders.weights import (
    assign_copies,
    is_finite,
    load_trained_part,
    save_trained_part,
)
from pipeline.errors import MismatchError, UsageError
from pipeline.recipe import DecodeConfig, Precision

BATCH = 8
# Of 16 frames of 224 x 224 a backward pass keeps two gigabytes.
MOST_TRAINING_ROWS = 1
_FRAMES_AT_ONCE = 16
_VALUES_PER_PIXEL = 700  # that a backward pass keeps; of ResNet-50, the most of the usual ones
_LEAST_VARIANCE = 1e-12  # the square root of 0 has no gradient


class ImageNetEncoder(nn.Module):
    """Preset and trunk of an image net, and the mean and deviation of its features over a clip.

    trunk: the whole net; its last linear layer is taken off

    forward: uint8 [batch, frames, height, width, 3] -> float32 [batch, 1, 2 * features]
    """

    batch_size: int | None = BATCH
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, trunk: nn.Module, precision: Precision, num_frames: int) -> None:
        super().__init__()
        self.name = name
        self.num_frames = num_frames
        preset = get_model_weights(name).DEFAULT.transforms()
        [side] = preset.crop_size
        self.crop = (side, side)
        self.preparation = Frames(crop=self.crop, most_rows=MOST_TRAINING_ROWS)
        self.register_buffer("mean", torch.tensor(preset.mean), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std), persistent=False)
        self.trunk = trunk
        self.dim = 2 * take_off_classifier(name, trunk)
        self.dtype = getattr(torch, precision)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 [frames, height, width, 3] -> [frames, 3, crop, crop], normalised."""
        # Rounded as torchvision's own centre crop rounds.
        top = round((frames.shape[1] - self.crop[0]) / 2)
        left = round((frames.shape[2] - self.crop[1]) / 2)
        cropped = frames[:, top : top + self.crop[0], left : left + self.crop[1]]
        scaled = cropped.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 3, 1, 2)  # channels last in memory already

    def forward(self, frames: Tensor) -> Tensor:
        singles = frames.flatten(0, 1)
        parts = [self._encode(part) for part in singles.split(_FRAMES_AT_ONCE)]
        return pool_frames(torch.cat(parts).unflatten(0, frames.shape[:2]))

    def _encode(self, frames: Tensor) -> Tensor:
        """[frames, height, width, 3] -> float32 [frames, features]"""
        return self.trunk(self.preprocess(frames).to(self.dtype)).float()

    def layer_depths(self) -> dict[str, int]:
        """All learn alike."""
        return dict.fromkeys((path for path, _ in self.named_parameters()), 0)

    def checkpoint_gradients(self) -> None:
        """Small batches keep its memory small."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        pixels = self.num_frames * self.crop[0] * self.crop[1]
        return float(value_bytes * _VALUES_PER_PIXEL * rows * pixels)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        """Frames of one size, as the clips are decoded; crop and normalisation are in the graph."""
        assert decode is not None
        return graph_of_frames(_BatchOfFrames(self, decode.num_frames), decode, BATCH)

    def save(self, folder: Path) -> None:
        save_trained_part(self.trunk, folder / f"{self.name}.safetensors")


class _BatchOfFrames(nn.Module):
    """What a graph computes of a batch, which its reader has made small."""

    def __init__(self, encoder: ImageNetEncoder, num_frames: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_frames = num_frames

    def forward(self, frames: Tensor) -> Tensor:
        features = self.encoder._encode(frames.flatten(0, 1))
        return pool_frames(features.reshape(-1, self.num_frames, features.shape[1]))


def pool_frames(features: Tensor) -> Tensor:
    """[batch, frames, features] -> [batch, 1, 2 * features]: mean, then standard deviation"""
    mean = features.mean(1, keepdim=True)
    variance = (features - mean).square().mean(1, keepdim=True)
    return torch.cat([mean, (variance + _LEAST_VARIANCE).sqrt()], dim=2)


def take_off_classifier(name: str, net: nn.Module) -> int:
    """Puts nothing in the place of the net's last linear layer; how many features that one read.

    What only helps training is taken off as well. Raises UsageError for a net that ends otherwise.
    """
    for auxiliary in ("aux1", "aux2", "AuxLogits"):  # GoogLeNet's and Inception's
        if hasattr(net, auxiliary):
            setattr(net, auxiliary, None)
    modules = [path for path, module in net.named_modules() if not list(module.children())]
    layers = [path for path in modules if isinstance(net.get_submodule(path), nn.Linear)]
    if not layers or layers[-1] != modules[-1]:
        raise UsageError(f"--video {name}: does not end in a linear layer; name another net")
    parent, _, last = layers[-1].rpartition(".")
    linear = net.get_submodule(layers[-1])
    assert isinstance(linear, nn.Linear)
    setattr(net.get_submodule(parent), last, nn.Identity())
    return linear.in_features


def build_image_net_encoder(
    name: str, path: Path | None, precision: Precision, num_frames: int
) -> ImageNetEncoder:
    """With torchvision's weights from the file `path`, or those that `save` wrote into the folder
    `path`; with seeded random ones where path is None.

    Raises:
        MismatchError: the file is no state dict of this net.
    """
    if path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trunk: Any = get_model(name, weights=None)
    else:
        with torch.device("meta"):  # its weights follow
            trunk = get_model(name, weights=None)
        if path.is_file():
            _load(trunk, name, path)
    if hasattr(trunk, "transform_input"):
        trunk.transform_input = True  # as torchvision sets it with its weights
    encoder = ImageNetEncoder(name, trunk, precision, num_frames)
    if path is not None and path.is_dir():
        load_trained_part(encoder.trunk, path / f"{name}.safetensors")
    trunk.to(dtype=encoder.dtype, memory_format=torch.channels_last)
    return encoder.eval()


def _load(net: nn.Module, name: str, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        assign_copies(net, state)
        finite = all(map(is_finite, state.values()))
    except Exception as error:  # what a wrong pickle raises shares no base class
        reason = next(iter(str(error).strip().splitlines()), "unreadable")
        raise MismatchError(f"{path}: not the weights of {name} ({reason})") from error
    if not finite:
        raise MismatchError(f"{path}: holds weights that are not finite")
