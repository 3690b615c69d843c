"""Several encoders of one modality as one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.encoder import EncoderChoice, EncoderEntry, EncoderWish
from pipeline.encoders.find import find_encoders
from pipeline.encoders.registry import ENCODERS, build_encoder, find_entry, prepare_for
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.encoders.video import Frames
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import CacheCorrupt, ClipError, UsageError
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe, FrameView, Precision
from pipeline.schema import ClipKey, DecodedClip, Utterance

BOTH = "spectrogram,prosody"


class Loud:
    """Hears only what is loud; an item is its peak, [1]."""

    most_rows: int | None = 4

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tensor | None]:
        peaks = [0.0 if c.waveform is None else np.abs(c.waveform).max() for c in clips]
        return [torch.tensor([peak]) if peak > 0.5 else None for peak in peaks]

    def shortfall(self, item: Tensor) -> ClipError | None:
        return ClipError("clipped", "peaks are cut") if item > 1 else None

    def length(self, item: Tensor) -> int:
        return 7

    def augment(self, item: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        return item * 2

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items))


class Layered(nn.Module):
    """Three layers of two features, or more: weights 1, 2, 3 times the peak."""

    batch_size: int | None = 3
    dim = 2

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.preparation = Loud()
        numbers = range(1, num_layers + 1)
        self.layers = nn.ParameterList(torch.full((2,), float(each)) for each in numbers)

    def forward(self, batch: Tensor) -> Tensor:
        return torch.stack([batch * weight for weight in self.layers], dim=1)

    def layer_depths(self) -> dict[str, int]:
        return {f"layers.{each}": each for each in range(len(self.layers))}

    def checkpoint_gradients(self) -> None:
        pass

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return 1000.0 * rows

    def save(self, folder: Path) -> None:
        save_trained_part(self, folder / "loud.safetensors")


def entry_of(num_layers: int, precision_is_free: bool = True) -> EncoderEntry:
    def choose(wish: EncoderWish, precision: Precision) -> EncoderChoice:
        layers = wish.layers or tuple(range(num_layers))
        if max(layers) >= num_layers:
            raise UsageError(f"{wish.name} has {num_layers} layers")
        return EncoderChoice(
            spec=EncoderSpec(
                modality="audio",
                name=wish.name,
                weights="random" if wish.weights == "random" else "pretrained",
                weights_hash="by hand",
                pooling="peak",
                precision=precision,
                layers=layers,
            )
        )

    def build(choice: EncoderChoice, decode: DecodeConfig | None) -> Layered:
        encoder = Layered(len(choice.spec.layers))
        if choice.path is not None:
            load_trained_part(encoder, choice.path / "loud.safetensors")
        return encoder

    return EncoderEntry(
        modality="audio",
        choose=choose,
        prepare=lambda choice, decode: Loud(),
        build=build,
        autocast=precision_is_free,
        is_layered=True,
        count_layers=lambda folder: num_layers,
    )


@pytest.fixture(autouse=True)
def strange_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "loud", entry_of(3))
    monkeypatch.setitem(ENCODERS, "deep", entry_of(5))


def clip_of(samples: int, loudness: float = 1.0) -> DecodedClip:
    waveform = np.random.default_rng(samples).uniform(-1, 1, samples) * loudness
    utterance = Utterance(key=ClipKey("train", 0, samples), text="")
    return DecodedClip(utterance=utterance, waveform=waveform.astype(np.float32))


def choose(name: str, precision: Precision = "float32") -> EncoderChoice:
    return choose_encoder("audio", EncoderRequest(audio=name), precision)


def encode(name: str, clips: Sequence[DecodedClip]) -> list[np.ndarray]:
    encoders = Encoders([choose(name)], DecodeConfig())
    return [features.raw["audio"] for features in encode_clips(encoders, clips)]


@pytest.mark.parametrize("name", [BOTH, "prosody, spectrogram"])
def test_features_stand_beside_each_other_in_the_order_of_the_names(name: str) -> None:
    clips = [clip_of(16_000), clip_of(400), clip_of(7_000)]
    alone = {each: encode(each.strip(), clips) for each in name.split(",")}
    for row, found in enumerate(encode(name, clips)):
        np.testing.assert_array_equal(
            found, np.concatenate([rows[row] for rows in alone.values()], axis=1)
        )


def test_the_modality_is_absent_only_where_none_finds_anything() -> None:
    clips = [clip_of(16_000), clip_of(16_000, 0.1), clip_of(10, 0.1)]
    encoders = Encoders([choose("loud,prosody")], DecodeConfig())
    both, quiet, nothing = encode_clips(encoders, clips)
    assert both.raw["audio"].shape == (3, 2 + 65)
    assert (both.raw["audio"][:, :2] != 0).all()
    assert both.failures == ()
    assert (quiet.raw["audio"][:, :2] == 0).all()
    assert (quiet.raw["audio"][0, 2:] != 0).any()
    [warning] = quiet.failures
    assert (warning.code, warning.lost) == ("part_missing", False)
    assert warning.message == "loud finds nothing to encode; its features are zero"
    assert nothing.raw == {}
    [failure] = nothing.failures
    assert (failure.code, failure.lost) == ("nothing_to_encode", True)


def test_one_layer_stands_beside_each_of_many() -> None:
    [row] = encode("loud,prosody", [clip_of(16_000)])
    peak = row[0, 0]
    assert row[:, :2].tolist() == [[peak, peak], [2 * peak, 2 * peak], [3 * peak, 3 * peak]]
    assert (row[0, 2:] == row[1, 2:]).all()
    assert (row[0, 2:] == row[2, 2:]).all()


def test_layers_of_a_like_depth_stand_beside_each_other() -> None:
    [row] = encode("loud,deep", [clip_of(16_000)])
    peak = row[0, 0]
    assert row.shape == (5, 4)
    assert (row[:, 0] / peak).round(5).tolist() == [1, 1, 2, 3, 3]
    assert (row[:, 2] / peak).round(5).tolist() == [1, 2, 3, 4, 5]


def test_encoders_of_unequal_depth_are_found_again_by_their_recipe() -> None:
    chosen = choose("loud,deep,prosody")
    recipe = FeatureRecipe(encoders=(chosen.spec,), decode=DecodeConfig())
    assert find_encoders(recipe, ("audio",)) == (chosen,)
    few = EncoderRequest(audio="loud,deep,prosody", audio_layers=(0, 2))
    assert choose_encoder("audio", few, "float32").spec.layers == (0, 2)
    with pytest.raises(UsageError, match="loud has 3 layers"):
        choose_encoder("audio", replace(few, audio_layers=(0, 3)), "float32")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("spectrogram,", "an empty name"),
        ("prosody,prosody", "prosody is named twice"),
        ("prosody,cochlea", "cochlea: unknown; known are spectrogram"),
    ],
)
def test_names_that_cannot_stand_together_are_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose(name)


def test_the_recipe_says_what_all_of_them_are() -> None:
    spec = choose(BOTH, "bfloat16").spec
    assert (spec.name, spec.weights, spec.precision) == (BOTH, "none", "float32")
    assert spec.weights_hash == "seed 0, no weights"
    assert spec.pooling == "statistics over time, functionals over time"
    assert choose("loud,prosody", "bfloat16").spec.precision == "bfloat16"
    recipe = FeatureRecipe(encoders=(spec,), decode=DecodeConfig())
    assert FeatureRecipe.from_json(recipe.to_json()) == recipe
    [found] = find_encoders(recipe, ("audio",))
    assert found == choose(BOTH)


def test_one_random_part_marks_the_whole() -> None:
    wish = EncoderWish(name="loud,prosody", weights="random")
    entry = ENCODERS["loud"]
    assert entry.choose(replace(wish, name="loud"), "float32").spec.is_random
    assert find_entry("audio", wish.name).choose(wish, "float32").spec.is_random


def test_the_preparation_needs_no_weights_and_asks_each() -> None:
    preparation = prepare_for(choose("loud,prosody"), DecodeConfig())
    [item] = preparation.prepare([clip_of(16_000)])
    assert preparation.most_rows == 4
    assert preparation.length(item) == 7
    assert preparation.shortfall(item) is None
    generator = torch.Generator().manual_seed(0)
    louder, _ = preparation.augment(item, AugmentConfig(), generator)
    assert louder == item[0] * 2
    shouted = preparation.shortfall((item[0] * 2, None))
    assert shouted is not None
    assert shouted.code == "part_missing"
    assert "peaks are cut" in shouted.message


def test_an_encoder_with_a_single_precision_keeps_it() -> None:
    encoder = build_encoder(choose(BOTH), DecodeConfig())
    batch = encoder.preparation.collate(encoder.preparation.prepare([clip_of(9_000)]))
    with torch.inference_mode():
        exact = encoder(batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(batch), exact)


def test_tops_are_level_and_every_parameter_that_learns_is_named() -> None:
    encoder = build_encoder(choose("loud,spectrogram,prosody"), DecodeConfig())
    depths = encoder.layer_depths()
    assert depths["parts.0.layers.0"] == 0
    assert depths["parts.0.layers.2"] == 2
    assert depths["parts.1.cnn.0.weight"] == 2
    assert isinstance(encoder, nn.Module)
    assert set(depths) == {path for path, _ in encoder.named_parameters()}
    assert encoder.activation_bytes(2, 7, 4) == 2000
    assert encoder.batch_size == 3


@pytest.fixture
def nets_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders "wide", "square" and "wide again", whose feature is the brightness of what they
    see; the last wants the view of the first."""
    for name, view in (
        ("wide", FrameView(height=2, width=8, fit="stretch")),
        ("square", FrameView(height=3, width=3, fit="crop")),
        ("wide again", FrameView(height=2, width=8, fit="stretch")),
    ):
        monkeypatch.setitem(ENCODERS, name, entry_of_view(view))


def entry_of_view(view: FrameView) -> EncoderEntry:
    class Bright(Layered):
        preparation: Frames

        def __init__(self, decode: DecodeConfig | None) -> None:
            super().__init__()
            assert decode is not None
            assert decode.views == (view,)
            self.preparation = Frames(crop=(view.height, view.width))

        def forward(self, batch: Tensor) -> Tensor:
            assert batch.shape[2:] == (view.height, view.width, 3)
            return batch.float().mean((1, 2, 3, 4))[:, None, None].expand(-1, 1, 2)

    def choose(wish: EncoderWish, precision: Precision) -> EncoderChoice:
        return EncoderChoice(
            spec=EncoderSpec(
                modality="video",
                name=wish.name,
                weights="none",
                weights_hash="by hand",
                pooling="mean",
                precision="float32",
            )
        )

    return EncoderEntry(
        modality="video",
        choose=choose,
        prepare=lambda choice, decode: Bright(decode).preparation,
        build=lambda choice, decode: Bright(decode),
        frames=lambda name: (view,),
    )


def test_encoders_of_pictures_see_a_view_each(nets_of_pictures: None) -> None:
    name = "wide,square,wide again"
    wants = find_entry("video", name).frames
    assert wants is not None
    first, second = wants(name)
    decode = replace(DecodeConfig(num_frames=2).of_view(first), more_views=(second,))
    frames = np.zeros((2, *decode.frame_shape), np.uint8)
    decode.take_view(frames, first)[:] = 40
    decode.take_view(frames, second)[:] = 90
    clip = replace(clip_of(1), frames=frames)
    choice = choose_encoder("video", EncoderRequest(video=name), "float32")
    [features] = encode_clips(Encoders([choice], decode), [clip])
    assert features.raw["video"].tolist() == [[40, 40, 90, 90, 40, 40]]
    prepared = prepare_for(choice, decode).prepare([clip, clip_of(1)])
    assert [None if item is None else [len(each) for each in item] for item in prepared] == [
        [2, 2, 2],
        None,
    ]


@pytest.mark.parametrize("name", ["loud,spectrogram,prosody", "loud,spectrogram,deep"])
def test_a_fine_tuned_run_holds_all_of_them(name: str, tmp_path: Path) -> None:
    decode = DecodeConfig()
    choice = choose(name)
    encoders = Encoders([choice], decode)
    with torch.no_grad():
        for parameter in encoders.parameters():
            parameter.add_(0.1)
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=decode)
    written = write_encoders(tmp_path, dict(encoders.items()), recipe, ["audio"])
    saved = read_encoders(tmp_path)
    assert saved.recipe == written
    saved.check_files("audio")
    again = Encoders([choose_saved(saved, "audio")], decode)
    clips = [clip_of(5_000)]
    [before], [after] = encode_clips(encoders, clips), encode_clips(again, clips)
    np.testing.assert_array_equal(before.raw["audio"], after.raw["audio"])
    spec = written.encoders[0]
    assert (spec.weights, spec.started_from) == ("finetuned", "pretrained")
    file = saved.path("audio") / "1" / "spectrogram.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(CacheCorrupt, match="not the files that fine-tuning wrote"):
        saved.check_files("audio")
