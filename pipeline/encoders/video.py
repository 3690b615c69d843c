"""torchvision's video ResNets: clips of frames to one vector per clip."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from pipeline.encoders.weights import load_trained_part
from pipeline.errors import MismatchError
from pipeline.recipe import Precision


class VideoEncoder(nn.Module):
    """Preset and trunk of a video ResNet, without its classifier.

    forward: uint8 [batch, frames, height, width, 3] -> float32 [batch, 1, 512]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, precision: Precision) -> None:
        super().__init__()
        preset = get_model_weights(name).DEFAULT.transforms()
        self.crop_height, self.crop_width = preset.crop_size
        # Buffers, so that they travel to the device; float32 whatever the trunk is in.
        self.register_buffer("mean", torch.tensor(preset.mean), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std), persistent=False)
        self.trunk = get_model(name, weights=None)
        self.trunk.fc = nn.Identity()
        self.dtype = getattr(torch, precision)

    @property
    def trained_part(self) -> nn.Module:
        return self.trunk

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 [batch, frames, height, width, 3] -> [batch, 3, frames, crop, crop], normalised."""
        # Rounded as torchvision's own centre crop rounds: 29.5 is 30.
        top = round((frames.shape[2] - self.crop_height) / 2)
        left = round((frames.shape[3] - self.crop_width) / 2)
        crop = frames[:, :, top : top + self.crop_height, left : left + self.crop_width]
        scaled = crop.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 4, 1, 2, 3)  # channels last in memory already

    def forward(self, frames: Tensor) -> Tensor:
        pixels = self.preprocess(frames).to(self.dtype)
        return self.trunk(pixels).float().unsqueeze(1)


def build_video_encoder(name: str, path: Path | None, precision: Precision) -> VideoEncoder:
    """With torchvision's weights from `path`, or fine-tuned ones (.safetensors); with seeded random
    ones where path is None.

    Raises:
        MismatchError: the file is no state dict of this net.
    """
    # torchvision initialises from the global generator; seeding it here is what "seeded" means.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VideoEncoder(name, precision)
    if path is not None and path.suffix == ".safetensors":
        load_trained_part(encoder.trunk, path)
    elif path is not None:
        _load(encoder, name, path)
    encoder.trunk.to(dtype=encoder.dtype, memory_format=torch.channels_last_3d)
    return encoder.eval()


def _load(encoder: VideoEncoder, name: str, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classifier = [state.pop(key) for key in ("fc.weight", "fc.bias")]
        encoder.trunk.load_state_dict(state)
        finite = all(torch.isfinite(value).all() for value in [*state.values(), *classifier])
    except Exception as error:  # what a wrong pickle raises shares no base class
        reason = next(iter(str(error).strip().splitlines()), "unreadable")
        raise MismatchError(f"{path}: not the weights of {name} ({reason})") from error
    if not finite:
        raise MismatchError(f"{path}: holds weights that are not finite")
