"""What is pruned is smaller, and says the same where only silent units were removed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

from fusion.model.dims import FUSION_TYPES, FusionDims, FusionType, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from pipeline.encoders.audio import Sound, SoundBatch
from pipeline.encoders.pruning import Importance, PrunableLayer, keep_units
from pipeline.encoders.speech import SpeechEncoder, build_speech_encoder
from pipeline.encoders.text import TextEncoder, build_text_encoder
from pipeline.encoders.video import VideoEncoder, build_video_encoder
from pipeline.errors import MismatchError
from pipeline.schema import ClipKey, DecodedClip, Utterance
from tests.pipeline.encoders.test_speech import make

LAYERS = (0, 1, 2)
NETS = ("r3d_18", "r2plus1d_18", "mc3_18")


def text_encoder(folder: Path) -> TextEncoder:
    return build_text_encoder(folder, LAYERS, "float32", pretrained=True)


def clips(*texts: str) -> list[DecodedClip]:
    return [
        DecodedClip(utterance=Utterance(key=ClipKey("dev", 0, row), text=text, speaker=""))
        for row, text in enumerate(texts)
    ]


def read(encoder: TextEncoder, *texts: str) -> Tensor:
    preparation = encoder.preparation
    items = [item for item in preparation.prepare(clips(*texts)) if item is not None]
    return encoder(preparation.collate(items))


def frames() -> Tensor:
    """uint8 [1, 2, 128, 171, 3]"""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 2, 128, 171, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def silence_odd_units(layers: list[PrunableLayer]) -> list[list[int]]:
    """Nobody listens to every second unit any more; returns the others."""
    kept = []
    for layer in layers:
        units = torch.arange(layer.num_units * layer.unit) // layer.unit
        for consumer in layer.consumers:
            weight: Any = consumer.weight
            weight[:, units % 2 == 1] = 0
        kept.append(list(range(0, layer.num_units, 2)))
    return kept


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_a_text_encoder_without_its_silent_heads_and_neurons_gives_the_same_features(
    tiny_text_folder: Path, tmp_path: Path
) -> None:
    encoder = text_encoder(tiny_text_folder)
    names = [layer.name for layer in encoder.prunable()]
    assert names == [
        f"encoder.layer.{number}.{part}"
        for number in (0, 1)
        for part in ("attention", "intermediate")
    ]
    heads, neurons = encoder.prunable()[:2]
    assert (heads.num_units, heads.unit, neurons.num_units) == (12, 4, 64)
    kept = silence_odd_units(encoder.prunable())
    before, size = read(encoder, "How are you?", "Fine."), count(encoder)
    encoder.prune_to(kept)
    assert count(encoder) < size
    assert [layer.num_units for layer in encoder.prunable()] == [6, 32, 6, 32]
    torch.testing.assert_close(read(encoder, "How are you?", "Fine."), before)

    encoder.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["intermediate_size"] == 32
    again = text_encoder(tmp_path)
    assert torch.equal(read(again, "How are you?"), read(encoder, "How are you?"))
    assert not list(tmp_path.glob("*.bin"))  # no pickle


@pytest.mark.heavy
@pytest.mark.parametrize("name", NETS)
def test_a_video_net_without_its_silent_channels_gives_the_same_features(
    name: str, tmp_path: Path
) -> None:
    encoder = build_video_encoder(name, None, "float32", num_frames=2)
    kept = silence_odd_units(encoder.prunable())
    with torch.inference_mode():
        before, size = encoder(frames()), count(encoder)
    encoder.prune_to(kept)
    assert count(encoder) < 0.6 * size
    with torch.inference_mode():
        after = encoder(frames())
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)

    encoder.save(tmp_path)
    again = build_video_encoder(name, tmp_path, "float32", num_frames=2)
    assert [each.num_units for each in again.prunable()] == [len(units) for units in kept]
    with torch.inference_mode():
        torch.testing.assert_close(again(frames()), after)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("wav2vec2", ["attention", "feed_forward.intermediate_dense"]),
        ("hubert", ["attention", "feed_forward.intermediate_dense"]),
        ("wavlm", ["feed_forward.intermediate_dense"]),  # its heads have positions of their own
        ("whisper", ["self_attn", "fc1"]),
    ],
)
def test_a_model_of_speech_without_its_silent_units_gives_the_same_features(
    kind: str, parts: list[str], tmp_path: Path
) -> None:
    folder, _ = make(kind, tmp_path / "model")
    encoder = build_speech(folder)
    names = [layer.name.split("layers.")[1] for layer in encoder.prunable()]
    assert names == [f"{number}.{part}" for number in (0, 1) for part in parts]
    kept = silence_odd_units(encoder.prunable())
    before, size = listen(encoder), count(encoder)
    encoder.prune_to(kept)
    assert count(encoder) < size
    torch.testing.assert_close(listen(encoder), before)

    encoder.save(tmp_path)
    again = build_speech(tmp_path)
    assert [each.num_units for each in again.prunable()] == [len(units) for units in kept]
    assert torch.equal(listen(again), listen(encoder))


def test_attention_of_another_kind_is_not_pruned(tmp_path: Path) -> None:
    """A Conformer's has positions inside, and its projections have other names."""
    config = Wav2Vec2ConformerConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2ConformerModel(config).save_pretrained(tmp_path)
    encoder = build_speech(tmp_path)
    assert all(layer.unit == 1 for layer in encoder.prunable())
    encoder.prune_to([range(layer.num_units) for layer in encoder.prunable()])


def test_random_weights_of_a_pruned_model_are_pruned_too(tmp_path: Path) -> None:
    folder, _ = make("wav2vec2", tmp_path / "model")
    encoder = build_speech(folder)
    encoder.prune_to([[0], range(8), [1], range(8)])
    encoder.save(tmp_path)
    random = build_speech(tmp_path, pretrained=False)
    assert [layer.num_units for layer in random.prunable()] == [1, 8, 1, 8]


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 0}, {"hidden_size": "x"}, {"conv_dim": [8]}, {"layerdrop": []}],
)
def test_a_model_of_speech_that_cannot_be_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder, _ = make("wav2vec2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(MismatchError, match="no usable speech model") as refused:
        build_speech(folder)
    assert "\n" not in str(refused.value)


def build_speech(folder: Path, *, pretrained: bool = True) -> SpeechEncoder:
    return build_speech_encoder(
        folder, (0, 1, 2), "float32", pretrained=pretrained, sample_rate_hz=16_000
    )


@torch.inference_mode()
def listen(encoder: SpeechEncoder) -> Tensor:
    """Features of a second of noise."""
    generator = torch.Generator().manual_seed(1)
    return encoder(SoundBatch((Sound(torch.randn(16_000, generator=generator)),)))


def test_a_pruned_model_of_speech_of_wrong_widths_is_refused(tmp_path: Path) -> None:
    folder, _ = make("wav2vec2", tmp_path / "model")
    encoder = build_speech(folder)
    encoder.prune_to([[0], range(8), [1], range(8)])
    encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pruned_units"] = dict.fromkeys(config["pruned_units"], 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="has 3 units of 2") as refused:
        build_speech(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("fusion", FUSION_TYPES)
def test_a_fusion_model_without_its_silent_units_gives_the_same_logits(fusion: FusionType) -> None:
    dims = FusionDims(
        modalities=(
            ModalityDims(modality="text", layers=2, dim=6),
            ModalityDims(modality="audio", layers=1, dim=5),
        ),
        model=ModelConfig(fusion=fusion, projection=8, hidden=16),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = FusionModel(dims).eval()
        features = {"text": torch.randn(4, 2, 6), "audio": torch.randn(4, 1, 5)}
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    kept = silence_odd_units(model.prunable())
    before = model(features, present)  # type: ignore[arg-type]
    is_normed = any(isinstance(part, nn.LayerNorm) for part in model.join.modules())
    model.prune_to(kept)
    assert model.dims.model.hidden == 8
    assert set(model.state_dict()) == set(FusionModel(model.dims).state_dict())
    FusionModel(model.dims).load_state_dict(model.state_dict())
    after = model(features, present)  # type: ignore[arg-type]
    if fusion != "early" or not is_normed:  # a norm over units notices those that are gone
        torch.testing.assert_close(after.emotion_logits, before.emotion_logits)
        torch.testing.assert_close(after.sentiment_logits, before.sentiment_logits)


def test_units_that_change_the_loss_are_the_important_ones() -> None:
    """Of 16 neurons those that the answer comes from stay, in their order."""
    first, second = nn.Linear(3, 16), nn.Linear(16, 1)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.zero_()
        second.weight.zero_()
        second.weight[0, [2, 3, 5, 7, 8, 11, 13, 15]] = torch.arange(1.0, 9.0)
    layer = PrunableLayer(name="hidden", producers=(first,), consumers=(second,))
    importance = Importance([layer])
    with importance.watch():
        second(first(torch.ones(4, 3))).sum().backward()
    assert importance.sums[0][2] == pytest.approx(4 * 3 * 1.0)  # 4 rows of 3 x gradient 1
    assert importance.best(0.5) == [[2, 3, 5, 7, 8, 11, 13, 15]]
    second(first(torch.ones(1, 3))).sum().backward()
    assert importance.sums[0][2] == pytest.approx(12)  # nothing counts outside of the block


def test_importance_of_a_head_is_of_all_its_outputs_together() -> None:
    """Two outputs that cancel each other out in every row change nothing."""
    first, second = nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [1.0]]))
        second.weight.copy_(torch.tensor([[5.0, -5.0, 1.0, 1.0]]))
    importance = Importance(
        [PrunableLayer(name="heads", producers=(first,), consumers=(second,), unit=2)]
    )
    with importance.watch():
        second(first(torch.ones(2, 1))).sum().backward()
    assert importance.sums[0].tolist() == [0, 4]
    assert importance.best(0.5) == [[1]]


@pytest.mark.parametrize(
    ("units", "unit", "share", "kept"),
    [
        (1536, 1, 0.5, 768),
        (1536, 1, 0.3, 1072),  # 1075.2, in sixteens
        (64, 1, 0.3, 48),  # 44.8
        (12, 32, 0.3, 8),  # heads, 8.4
        (12, 32, 0.99, 1),
        (64, 1, 0.99, 16),
        (5, 1, 0.5, 2),
    ],
)
def test_a_share_of_units_goes_in_widths_that_kernels_compute_well(
    units: int, unit: int, share: float, kept: int
) -> None:
    layer = PrunableLayer(
        name="layer",
        producers=(nn.Linear(1, units * unit),),
        consumers=(nn.Linear(units * unit, 1),),
        unit=unit,
    )
    assert layer.units_kept(share) == kept


def test_norms_and_biases_are_cut_with_their_units() -> None:
    conv, norm, reader = nn.Conv3d(2, 6, 1), nn.BatchNorm3d(6), nn.Conv3d(6, 3, 1)
    norm.running_mean = torch.arange(6.0)
    layer = PrunableLayer(name="conv", producers=(conv, norm), consumers=(reader,))
    keep_units(layer, [1, 4])
    assert norm.running_mean.tolist() == [1, 4]
    assert (conv.out_channels, norm.num_features, reader.in_channels) == (2, 2, 2)
    assert conv.bias is not None
    assert conv.bias.shape == (2,)
    assert reader.weight.shape == (3, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda units: None, "it names other layers"),
        (lambda units: dict.fromkeys(units, 0), "has 0 units of 12"),
        (lambda units: dict.fromkeys(units, 10**9), "has 1000000000 units of 12"),
        (lambda units: dict.fromkeys(units, 2.0), "has 2.0 units of 12"),
        (lambda units: dict.fromkeys(units, True), "has True units of 12"),
        (lambda units: {"pooler": 1}, "it names other layers"),
        (lambda units: [1, 2], "it names other layers"),
        (lambda units: dict.fromkeys(units, 3), "size mismatch"),
    ],
)
def test_a_pruned_text_encoder_of_wrong_widths_is_refused(
    tiny_text_folder: Path, tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    encoder = text_encoder(tiny_text_folder)
    encoder.prune_to([[0], list(range(8)), [0], list(range(8))])
    encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = change(config["pruned_units"])
    config |= {"pruned_units": wanted if wanted is not None else {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError) as refused:
        text_encoder(tmp_path)
    assert "\n" not in str(refused.value)
    assert said in str(refused.value) or "Error(s) in loading" in str(refused.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pruned_units": {"layer1.0.conv1": 8}}', "[" * 100_000]
)
def test_a_pruned_video_net_of_wrong_widths_is_refused(content: str, tmp_path: Path) -> None:
    encoder: VideoEncoder = build_video_encoder("r3d_18", None, "float32", num_frames=2)
    encoder.prune_to([range(8) for _ in encoder.prunable()])
    encoder.save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MismatchError, match="not the config of a pruned r3d_18") as refused:
        build_video_encoder("r3d_18", tmp_path, "float32", num_frames=2)
    assert "\n" not in str(refused.value)


def test_an_encoder_that_is_not_built_as_bert_has_nothing_to_prune(tiny_text_folder: Path) -> None:
    encoder = text_encoder(tiny_text_folder)
    encoder.model = nn.ModuleDict({"layer": nn.Linear(2, 2)})  # type: ignore[assignment]
    assert encoder.prunable() == []


def test_pruned_features_are_finite_for_every_share(tiny_text_folder: Path) -> None:
    for share in (0.1, 0.5, 0.9):
        encoder = text_encoder(tiny_text_folder)
        importance = Importance(encoder.prunable())
        with importance.watch():
            read(encoder, "One.", "Two words.").sum().backward()
        encoder.prune_to(importance.best(share))
        assert np.isfinite(read(encoder, "One.").detach().numpy()).all()
