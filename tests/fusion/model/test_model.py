"""The late fusion: a mask decides what counts, never the values behind it."""

import pytest
import torch

from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel

DIMS = FusionDims(
    modalities=(
        ModalityDims(modality="text", layers=3, dim=6),
        ModalityDims(modality="video", layers=1, dim=5),
        ModalityDims(modality="audio", layers=1, dim=4),
    )
)


@pytest.fixture
def model() -> FusionModel:
    torch.manual_seed(0)
    return FusionModel(DIMS).eval()


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        dims.modality: torch.randn(8, dims.layers, dims.dim, generator=generator)
        for dims in DIMS.modalities
    }


def all_present(rows: int = 8) -> torch.Tensor:
    return torch.ones(rows, 3, dtype=torch.bool)


def test_two_heads_come_out(model, features):
    output = model(features, all_present())
    assert output.emotion_logits.shape == (8, 7)
    assert output.sentiment_logits.shape == (8, 3)


@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_values_of_an_absent_modality_change_nothing(model, features, garbage):
    present = all_present()
    present[2, 1] = False
    clean = model(features, present)
    features["video"][2] = garbage
    dirty = model(features, present)
    assert torch.equal(clean.emotion_logits, dirty.emotion_logits)
    assert torch.equal(clean.sentiment_logits, dirty.sentiment_logits)


def test_garbage_in_an_absent_modality_leaves_the_gradients_whole(model, features):
    present = all_present()
    present[2, 0] = False
    features["text"][2] = float("nan")
    model.train()
    model(features, present).emotion_logits.sum().backward()
    for name, weights in model.named_parameters():
        assert weights.grad is None or torch.isfinite(weights.grad).all(), name


def test_absence_is_not_the_same_as_zeros(model, features):
    present = all_present()
    features["audio"][:] = 0
    zeros = model(features, present).emotion_logits
    present[:, 2] = False
    assert not torch.allclose(zeros, model(features, present).emotion_logits)


def test_a_key_that_is_not_there_equals_a_modality_absent_everywhere(model, features):
    present = all_present()
    present[:, 1] = False
    masked = model(features, present)
    del features["video"]
    assert torch.equal(masked.emotion_logits, model(features, present).emotion_logits)


def test_nothing_at_all_still_gives_numbers(model):
    output = model({}, torch.zeros(4, 3, dtype=torch.bool))
    assert torch.isfinite(output.emotion_logits).all()
    assert output.emotion_logits.shape == (4, 7)


def test_a_row_does_not_depend_on_its_neighbours(model, features):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    straight = model(features, all_present()).emotion_logits
    shuffled = model({name: v[order] for name, v in features.items()}, all_present())
    torch.testing.assert_close(straight[order], shuffled.emotion_logits)


def test_standardisation_comes_from_the_rows_that_are_there(model, features):
    present = all_present()
    present[5:, 0] = False
    features["text"][5:] = 1e6
    model.fit_standardisation(features, present)
    standardised = model.standardise(features, present)["text"]
    torch.testing.assert_close(standardised[:5].mean(dim=0), torch.zeros(3, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised[:5].std(dim=0, correction=0), torch.ones(3, 6))
    assert (standardised[5:] == 0).all()


def test_a_dimension_that_stands_still_in_train_does_not_explode_later(model, features):
    features["audio"][:, 0, 3] = 2.0
    model.fit_standardisation(features, all_present())
    features["audio"][0, 0, 3] = 2.1
    assert model.standardise(features, all_present())["audio"].abs().max() < 50


@pytest.mark.heavy
def test_the_layer_mix_learns_which_layer_tells():
    torch.manual_seed(0)
    model = FusionModel(FusionDims(modalities=DIMS.modalities[:1]))
    labels = torch.randint(0, 7, (256,))
    features = torch.randn(256, 3, 6)
    features[:, 2] += torch.randn(7, 6)[labels] * 3
    present = torch.ones(256, 1, dtype=torch.bool)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(20):
        logits = model({"text": features}, present).emotion_logits
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.branches["text"].layer_logits.argmax() == 2


def test_dims_survive_their_json_form():
    assert FusionDims.from_dict(DIMS.to_dict()) == DIMS


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="dropout"):
        ModelConfig(dropout=1.0)
    with pytest.raises(ValueError, match="hidden"):
        ModelConfig(hidden=0)
    with pytest.raises(ValueError, match="once"):
        FusionDims(modalities=DIMS.modalities[:1] * 2)


@pytest.mark.heavy
def test_layers_side_by_side_tell_what_no_mean_of_them_does():
    """The label is the sign of a difference between two layers that are loud in the same way."""
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (256,))
    noise, sign = torch.randn(256, 1, 6) * 3, (2 * labels - 1)[:, None, None].float()
    features = torch.cat([noise + sign, noise - sign], dim=1)
    present = torch.ones(256, 1, dtype=torch.bool)
    right = {}
    for layers in ("mix", "beside"):
        torch.manual_seed(1)
        dims = (ModalityDims(modality="text", layers=2, dim=6),)
        model = FusionModel(FusionDims(modalities=dims, model=ModelConfig(layers=layers)))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            logits = model({"text": features}, present).emotion_logits
            loss = torch.nn.functional.cross_entropy(logits[:192], labels[:192])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        unseen = model.eval()({"text": features}, present).emotion_logits[192:]
        right[layers] = (unseen.argmax(1) == labels[192:]).float().mean().item()
    assert right["beside"] > right["mix"] + 0.1
    assert right["beside"] > 0.95


def test_a_run_that_is_older_than_the_choice_of_layers_mixes_them():
    values = DIMS.to_dict()
    del values["model"]["layers"]
    assert FusionDims.from_dict(values) == DIMS
    with pytest.raises(ValueError, match="layers must be mix or beside, not 'top'"):
        ModelConfig(layers="top")
