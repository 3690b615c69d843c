"""Image nets, frame by frame: against torchvision's own presets, nets and weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders import weights
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.frames import build_image_net_encoder, pool_frames, take_off_classifier
from pipeline.encoders.registry import find_entry, prepare_for
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.errors import MismatchError, UsageError, WeightsMissing
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import ClipKey, DecodedClip, Utterance

pytestmark = pytest.mark.heavy

DECODE = DecodeConfig(num_frames=3, frame_height=256, frame_width=256, frame_fit="crop")


def clip_of(seed: int = 0, side: int = 256, num_frames: int = 3) -> DecodedClip:
    shape = (num_frames, side, side, 3)
    frames = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return DecodedClip(utterance=Utterance(key=ClipKey("train", 0, seed), text=""), frames=frames)


def choose(name: str, weights_dir: Path | None = None) -> EncoderChoice:
    which = "pretrained" if weights_dir is not None else "random"
    request = EncoderRequest(video=name, video_weights=which, weights_dir=weights_dir)
    return choose_encoder("video", request, "float32")


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    """Torchvision's own, with weights of which no two seeds draw the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net: nn.Module = get_model("resnet18", weights=None)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def weights_dir(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(resnet18.state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


@pytest.mark.parametrize("name", sorted(weights.IMAGE_NETS))
def test_what_is_written_down_is_torchvisions_own(name: str) -> None:
    best = get_model_weights(name).DEFAULT
    preset = best.transforms()
    known = weights.IMAGE_NETS[name]
    assert known == weights.ImageNet(best.url, preset.resize_size[0], preset.crop_size[0])
    views = find_entry("video", name).frames
    assert views is not None
    [view] = views(name)
    assert str(view) == f"{preset.resize_size[0]}x{preset.resize_size[0]} (crop)"


def test_features_are_those_of_torchvisions_preset_and_net(
    resnet18: nn.Module, weights_dir: Path
) -> None:
    """By forward hook at what the classifier reads, frame by frame, from PIL pictures."""
    clip = clip_of()
    assert clip.frames is not None
    preset = get_model_weights("resnet18").DEFAULT.transforms()
    seen: list[torch.Tensor] = []
    hook = resnet18.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.inference_mode():
        for frame in clip.frames:
            resnet18(preset(Image.fromarray(frame)).unsqueeze(0))
    hook.remove()
    features = torch.cat(seen).numpy()
    [found] = encode_clips(Encoders([choose("resnet18", weights_dir)], DECODE), [clip])
    wanted = np.concatenate([features.mean(0), features.std(0)])
    assert found.raw["video"].shape == (1, 1024)
    np.testing.assert_allclose(found.raw["video"][0], wanted, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        pytest.param("resnet50", 2048, marks=pytest.mark.slow),
        ("vgg16", 4096),  # fc7
        pytest.param("alexnet", 4096, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 1024, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 1280, marks=pytest.mark.slow),
        pytest.param("densenet121", 1024, marks=pytest.mark.slow),
        ("vit_b_16", 768),
        pytest.param("swin_t", 768, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 768, marks=pytest.mark.slow),
    ],
)
def test_the_last_linear_layer_is_taken_off(name: str, features: int) -> None:
    with torch.device("meta"):
        net = get_model(name, weights=None)
        assert take_off_classifier(name, net) == features
        assert net.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, features)


def test_a_net_that_ends_otherwise_is_refused() -> None:
    with pytest.raises(UsageError, match="squeezenet1_0: does not end in a linear layer"):
        take_off_classifier("squeezenet1_0", get_model("squeezenet1_0", weights=None))


def test_unknown_names_and_nets_of_videos_are_no_image_nets() -> None:
    assert weights.find_image_net("resnet34") is not None
    assert weights.find_image_net("s3d") is None
    with pytest.raises(UsageError, match=r"resnet19: unknown; known are r3d_18, .*other image"):
        EncoderRequest(video="resnet19")


def test_the_deviation_of_equal_frames_is_zero_and_has_a_gradient() -> None:
    features = torch.full((2, 3, 5), 2.0, requires_grad=True)
    pooled = pool_frames(features)
    assert pooled.shape == (2, 1, 10)
    assert pooled[..., :5].eq(2).all()
    assert pooled[..., 5:].abs().max() < 1e-5
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_features_do_not_depend_on_the_other_rows_of_a_batch(weights_dir: Path) -> None:
    encoders = Encoders([choose("resnet18", weights_dir)], DECODE)
    clips = [clip_of(seed) for seed in range(3)]
    together = encode_clips(encoders, clips)
    for clip, found in zip(clips, together, strict=True):
        [alone] = encode_clips(encoders, [clip])
        np.testing.assert_allclose(found.raw["video"], alone.raw["video"], atol=1e-4)


def test_hostile_frames_give_finite_features(weights_dir: Path) -> None:
    frames = np.zeros((3, 256, 256, 3), np.uint8)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("train", 0, row), text=""), frames=each)
        for row, each in enumerate(
            (frames, frames + 255, np.repeat(clip_of().frames[..., :1], 3, 3))
        )
    ]
    rows = encode_clips(Encoders([choose("resnet18", weights_dir)], DECODE), clips)
    assert all(np.isfinite(row.raw["video"]).all() for row in rows)
    assert all(row.failures == () for row in rows)


def test_the_model_learns_and_the_run_saves_it(weights_dir: Path, tmp_path: Path) -> None:
    choice = choose("resnet18", weights_dir)
    encoders = Encoders([choice], DECODE)
    encoder = encoders["video"]
    batch = encoder.preparation.collate(encoder.preparation.prepare([clip_of()]))
    encoder(batch).sum().backward()
    assert isinstance(encoder, nn.Module)
    learning = dict(encoder.named_parameters())
    assert set(encoder.layer_depths()) == set(learning)
    assert all(value.grad is not None for value in learning.values())
    with torch.no_grad():
        learning["trunk.conv1.weight"].mul_(1.5)
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=DECODE)
    write_encoders(tmp_path, dict(encoders.items()), recipe, ["video"])
    again = Encoders([choose_saved(read_encoders(tmp_path), "video")], DECODE)["video"]
    with torch.inference_mode():
        assert torch.equal(again(batch), encoder(batch))


def test_random_weights_are_marked_and_always_the_same() -> None:
    choice = choose("resnet18")
    assert choice.spec.is_random
    [one], [other] = (encode_clips(Encoders([choice], DECODE), [clip_of()]) for _ in range(2))
    np.testing.assert_array_equal(one.raw["video"], other.raw["video"])
    assert prepare_for(choice, DECODE).most_rows == 1


def test_other_weights_are_refused(weights_dir: Path, tmp_path: Path) -> None:
    state = torch.load(weights_dir / "resnet18-f37072fd.pth", weights_only=True)
    file = tmp_path / "resnet18-f37072fd.pth"
    for change in ("short", "nan", "other"):
        damaged = dict(state)
        if change == "nan":
            damaged["conv1.weight"] = state["conv1.weight"] * torch.nan
        if change == "other":
            del damaged["fc.bias"]
        torch.save(damaged, file)
        if change == "short":
            file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(MismatchError, match=r"resnet18-f37072fd\.pth") as caught:
            build_image_net_encoder("resnet18", file, "float32", 3)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"vgg16-397923af\.pth"):
        weights.find_video_weights(
            "vgg16", tmp_path, url=weights.IMAGE_NETS["vgg16"].url, download=False
        )
