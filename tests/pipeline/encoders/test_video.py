"""Video encoders: torchvision's nets and preprocessing, and only their own weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from pipeline.encoders import video, weights
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.registry import build_encoder
from pipeline.encoders.video import VideoEncoder, build_video_encoder
from pipeline.errors import MismatchError
from pipeline.recipe import DecodeConfig
from tests.pipeline.encoders.inputs import FEW_FRAMES, frames, one_line
from tests.pipeline.encoders.video_weights import R3D_18, flat, on_meta

DRAW = video.random_trunk  # in tests, copies of what it drew first take its place


@pytest.fixture
def weights_dir(video_state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    torch.save(video_state, tmp_path / R3D_18)
    return tmp_path


@pytest.mark.parametrize("name", weights.VIDEO_WEIGHTS)
def test_what_is_written_down_of_a_video_net_is_what_torchvision_says(name: str) -> None:
    theirs = get_model_weights(name).DEFAULT
    assert weights.VIDEO_WEIGHTS[name] == theirs.url
    assert list(weights.FRAME_SIZE) == theirs.transforms().resize_size
    assert list(weights.CROP_SIZE) == theirs.transforms().crop_size


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_preprocessing_is_torchvisions_own(name: str) -> None:
    """On frames of the preset's size only its crop and its normalisation are left to do."""
    pixels = frames(2)
    preset = get_model_weights(name).DEFAULT.transforms()
    expected = preset(pixels.permute(0, 1, 4, 2, 3))
    encoder = VideoEncoder(name, on_meta(name), "float32", FEW_FRAMES.num_frames)
    assert torch.equal(encoder.preprocess(pixels), expected)


@pytest.mark.heavy
def test_features_are_what_the_classifier_sees(
    weights_dir: Path, video_state: dict[str, torch.Tensor]
) -> None:
    request = EncoderRequest(weights_dir=weights_dir)
    choice = choose_encoder("video", request, "float32")
    assert choice.path == weights_dir / R3D_18
    assert choice.spec.weights_hash == weights.hash_weights(weights_dir / R3D_18)
    encoder = build_encoder(choice, FEW_FRAMES)
    whole = get_model("r3d_18", weights=None).eval()
    whole.load_state_dict(video_state)
    preset = get_model_weights("r3d_18").DEFAULT.transforms()
    pixels = frames(1, 128, 171)
    with torch.inference_mode():
        features = encoder(pixels)
        expected = whole(preset(pixels.permute(0, 1, 4, 2, 3)))
        logits = whole.fc(features[:, 0])
    assert features.shape == (1, 1, 512)
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.heavy
def test_weights_of_a_file_are_all_there_is_and_none_are_drawn_first(
    video_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = flat(video_state)
    state["stem.0.weight"] = state["stem.0.weight"].double()
    torch.save(state, tmp_path / R3D_18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "random_trunk", lambda name: pytest.fail("weights were drawn"))
        trunk = build_video_encoder("r3d_18", tmp_path / R3D_18, "float32").trunk
    assert {name for name in state if not name.startswith("fc.")} == set(trunk.state_dict())
    for name, value in trunk.state_dict().items():
        assert value.dtype == video_state[name].dtype
        assert torch.equal(value, flat(video_state)[name])
    for parameter in trunk.parameters():
        assert parameter.requires_grad
        with torch.no_grad():
            parameter.add_(1)  # as training does: a file's tensors may share memory


@pytest.mark.heavy
def test_random_video_weights_are_seeded_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "random_trunk", DRAW)
    choice = choose_encoder("video", EncoderRequest(video_weights="random"), "float32")
    assert (choice.spec.weights, choice.spec.weights_hash, choice.path) == (
        "random",
        "seed 0",
        None,
    )
    torch.manual_seed(1)
    first = build_encoder(choice, DecodeConfig()).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = build_encoder(choice, DecodeConfig()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)


# ------------------------------------------------------------------------------ weights refused


class _Code:
    """Unpickling this would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_with_code_in_them_are_refused_and_not_run(tmp_path: Path) -> None:
    for number, content in enumerate(
        (_Code(tmp_path / "ran"), {"fc.weight": _Code(tmp_path / "ran")})
    ):
        for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
            save(content, tmp_path / R3D_18)
            with pytest.raises(MismatchError) as caught:
                build_video_encoder("r3d_18", tmp_path / R3D_18, "float32")
            one_line(caught, tmp_path / R3D_18)
            assert not (tmp_path / "ran").exists(), number


def _nan_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "stem.0.weight": state["stem.0.weight"] * float("nan")}


WRONG_VIDEO: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "not finite": _nan_state,
    "classifier not finite": lambda state: {**state, "fc.bias": state["fc.bias"] / 0},
    "no classifier": lambda state: {key: state[key] for key in state if "fc" not in key},
    "a part missing": lambda state: {key: state[key] for key in state if "layer3" not in key},
    "one too many": lambda state: {**state, "more": torch.zeros(1)},
    "other shape": lambda state: {**state, "stem.0.weight": torch.zeros(3)},
    "no tensors": lambda state: dict.fromkeys(state, 1.0),
    "classifier no tensor": lambda state: {**state, "fc.bias": "words"},
    "a list": lambda state: list(state.values())[:3],
    "a tensor": lambda state: state["fc.bias"],
    "nothing": lambda _: None,
    "other net": lambda _: flat(on_meta("mc3_18").state_dict()),
}


@pytest.mark.heavy
@pytest.mark.parametrize("what", WRONG_VIDEO)
def test_other_things_than_this_nets_weights_are_refused(
    tmp_path: Path, video_state: dict[str, torch.Tensor], what: str
) -> None:
    torch.save(WRONG_VIDEO[what](flat(video_state)), tmp_path / R3D_18)
    choice = choose_encoder("video", EncoderRequest(weights_dir=tmp_path), "float32")
    with pytest.raises(MismatchError) as caught:
        build_encoder(choice, DecodeConfig())
    one_line(caught, tmp_path / R3D_18)


@pytest.mark.heavy
@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04" + bytes(200), None])
def test_a_weights_file_that_is_none_is_refused(
    video_state: dict[str, torch.Tensor], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / R3D_18
    torch.save(flat(video_state), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MismatchError) as caught:
        build_video_encoder("r3d_18", path, "float32")
    one_line(caught, path)
