"""torchvision's video ResNets: clips of frames to one vector per clip."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video.resnet import BasicBlock, VideoResNet

from pipeline.encoders.augment import AugmentConfig, draw
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.pruning import PrunableLayer, check_units, prune_layers, units_of
from pipeline.encoders.weights import (
    CROP_SIZE,
    assign_copies,
    is_finite,
    load_trained_part,
    save_trained_part,
)
from pipeline.errors import ClipError, MismatchError
from pipeline.recipe import DecodeConfig, Precision
from pipeline.schema import DecodedClip
from pipeline.system.json_values import MALFORMED

# On a CPU batches of 1 to 8 are equally fast, and in training the trunk's intermediate values are
# the largest thing in memory.
BATCH = 8

_CONFIG, _UNITS = "config.json", "pruned_units"
_VALUES_PER_PIXEL = 450  # that a backward pass keeps, of frames x height x width; measured, LOG.md


class Frames:
    """A clip's frames, uint8 [frames, height, width, 3]; a batch of them [batch, frames, ...].

    crop: height, width of what augmentation leaves, and of what the net sees
    """

    def __init__(self, *, crop: tuple[int, int] = CROP_SIZE, most_rows: int | None = BATCH) -> None:
        self.crop = crop
        self.most_rows = most_rows

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tensor | None]:
        return [
            None if clip.frames is None or not len(clip.frames) else torch.from_numpy(clip.frames)
            for clip in clips
        ]

    def shortfall(self, item: Tensor) -> ClipError | None:
        return None

    def length(self, item: Tensor) -> int:
        return 0  # all alike

    def augment(self, item: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        """Crop and flip are one draw for the whole clip: what moves must be the face, not the
        camera."""
        num_frames, height, width, _ = item.shape
        if config.time_jitter:
            reach = config.time_jitter
            shift = torch.randint(-reach, reach + 1, (num_frames,), generator=generator)
            order = (torch.arange(num_frames) + shift).clamp(0, num_frames - 1).sort().values
            item = item[order]
        top = _crop_start(height - self.crop[0], config.crop, generator)
        left = _crop_start(width - self.crop[1], config.crop, generator)
        cropped = item[:, top : top + self.crop[0], left : left + self.crop[1]]
        return cropped.flip(2) if draw(generator) < config.flip else cropped

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items))


def _crop_start(room: int, share: float, generator: torch.Generator) -> int:
    """Around the middle, where the encoder's own crop lies (rounded as it rounds)."""
    offset = (2 * draw(generator) - 1) * share * room / 2
    return min(max(round(room / 2 + offset), 0), room)


class VideoEncoder(nn.Module):
    """Preset and trunk of a video ResNet, without its classifier.

    trunk: the whole net; its classifier is taken off

    forward: uint8 [batch, frames, height, width, 3] -> float32 [batch, 1, 512]
    """

    batch_size: int | None = BATCH
    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, trunk: VideoResNet, precision: Precision, num_frames: int
    ) -> None:
        super().__init__()
        self.name = name
        self.num_frames = num_frames
        self.units: dict[str, int] | None = None  # of a pruned net
        self.preparation = Frames()
        preset = get_model_weights(name).DEFAULT.transforms()
        self.crop_height, self.crop_width = preset.crop_size
        # Buffers, so that they travel to the device; float32 whatever the trunk is in.
        self.register_buffer("mean", torch.tensor(preset.mean), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std), persistent=False)
        self.trunk = trunk
        self.dim = int(self.trunk.fc.in_features)
        self.trunk.fc = nn.Identity()
        self.dtype = getattr(torch, precision)

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 [batch, frames, height, width, 3] -> [batch, 3, frames, crop, crop], normalised."""
        # Rounded as torchvision's own centre crop rounds: 29.5 is 30.
        top = round((frames.shape[2] - self.crop_height) / 2)
        left = round((frames.shape[3] - self.crop_width) / 2)
        crop = frames[:, :, top : top + self.crop_height, left : left + self.crop_width]
        scaled = crop.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 4, 1, 2, 3)  # channels last in memory already

    def forward(self, frames: Tensor) -> Tensor:
        return torch.cat([self._encode(part) for part in frames.split(BATCH)])

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = self.preprocess(frames).to(self.dtype)
        return self.trunk(pixels).float().unsqueeze(1)

    def layer_depths(self) -> dict[str, int]:
        """All learn alike."""
        return dict.fromkeys((path for path, _ in self.named_parameters()), 0)

    def checkpoint_gradients(self) -> None:
        """Small batches keep its memory small."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        pixels = self.num_frames * self.preparation.crop[0] * self.preparation.crop[1]
        return float(value_bytes * _VALUES_PER_PIXEL * rows * pixels)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        """Frames of one size, as the clips are decoded; crop and normalisation are in the graph."""
        assert decode is not None
        return graph_of_frames(_BatchOfFrames(self), decode, BATCH)

    def prunable(self) -> list[PrunableLayer]:
        """The channels inside of each residual block; those between blocks stay, and with them the
        512 features."""
        layers = []
        for path, block in self.trunk.named_modules():
            if isinstance(block, BasicBlock):
                layers += _inner_channels(path, block)
        return layers

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        prune_layers(self.prunable(), kept)
        self.units = units_of(self.prunable())

    def save(self, folder: Path) -> None:
        """The weights, and of a pruned net `config.json` with its widths."""
        save_trained_part(self.trunk, folder / f"{self.name}.safetensors")
        if self.units is not None:
            config = {"name": self.name, _UNITS: self.units}
            (folder / _CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    def load_saved(self, folder: Path) -> None:
        """What `save` wrote. Raises MismatchError where it is not this net's."""
        path = folder / _CONFIG
        if path.is_file():
            try:
                units = json.loads(path.read_bytes())[_UNITS]
                self.prune_to([range(number) for number in check_units(self.prunable(), units)])
            except (OSError, *MALFORMED) as error:
                raise MismatchError(
                    f"{path}: not the config of a pruned {self.name} ({error})"
                ) from error
        load_trained_part(self.trunk, folder / f"{self.name}.safetensors")


def _inner_channels(path: str, block: BasicBlock) -> list[PrunableLayer]:
    """Those between its two convolutions; where a convolution is two, one in space and one in time,
    those between them as well."""
    first, norm = block.conv1[0], block.conv1[1]
    second = block.conv2[0]
    layers = []
    for name, part in (("conv1", first), ("conv2", second)):
        if isinstance(part, nn.Sequential):
            layers.append(
                PrunableLayer(
                    name=f"{path}.{name}.0", producers=(part[0], part[1]), consumers=(part[3],)
                )
            )
    last = first[3] if isinstance(first, nn.Sequential) else first
    reader = second[0] if isinstance(second, nn.Sequential) else second
    layers.append(PrunableLayer(name=f"{path}.conv1", producers=(last, norm), consumers=(reader,)))
    return layers


def graph_of_frames(net: nn.Module, decode: DecodeConfig, batch_size: int) -> GraphSource:
    """Of a net that reads uint8 [clips, frames, height, width, 3]; batch_size: clips at a time."""
    shape = (decode.num_frames, decode.frame_height, decode.frame_width, 3)
    return GraphSource(
        net=net,
        inputs={"frames": torch.zeros(2, *shape, dtype=torch.uint8)},
        lengths={"frames": {0: "clips"}},
        outputs=("features",),
        reading={
            "kind": "frames",
            "num_frames": decode.num_frames,
            "height": decode.frame_height,
            "width": decode.frame_width,
            "batch_size": batch_size,
        },
    )


class _BatchOfFrames(nn.Module):
    """What a graph computes of a batch, which its reader has made small."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> Tensor:
        return self.encoder._encode(frames)


def build_video_encoder(
    name: str, path: Path | None, precision: Precision, num_frames: int = 16
) -> VideoEncoder:
    """With torchvision's weights from the file `path`, or those that `save` wrote into the folder
    `path`; with seeded random ones where path is None.

    Raises:
        MismatchError: the file is no state dict of this net.
    """
    trunk = random_trunk(name) if path is None else _trunk_without_weights(name)
    encoder = VideoEncoder(name, trunk, precision, num_frames)
    if path is not None and path.is_dir():
        encoder.load_saved(path)
    elif path is not None:
        _load(encoder, name, path)
    encoder.trunk.to(dtype=encoder.dtype, memory_format=torch.channels_last_3d)
    return encoder.eval()


def random_trunk(name: str) -> VideoResNet:
    """Seeded: torchvision initialises from the global generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk: VideoResNet = get_model(name, weights=None)
    return trunk


def _trunk_without_weights(name: str) -> VideoResNet:
    """On the meta device: drawing 33 million weights takes longer than reading those that would
    replace them."""
    with torch.device("meta"):
        trunk: VideoResNet = get_model(name, weights=None)
    return trunk


def _load(encoder: VideoEncoder, name: str, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classifier = [state.pop(key) for key in ("fc.weight", "fc.bias")]
        assign_copies(encoder.trunk, state)
        finite = all(map(is_finite, [*state.values(), *classifier]))
    except Exception as error:  # what a wrong pickle raises shares no base class
        reason = next(iter(str(error).strip().splitlines()), "unreadable")
        raise MismatchError(f"{path}: not the weights of {name} ({reason})") from error
    if not finite:
        raise MismatchError(f"{path}: holds weights that are not finite")
