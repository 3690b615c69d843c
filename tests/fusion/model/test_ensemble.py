"""Several models as one: what it says is the mean of what its members say."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.model.dialogue import Turns
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.ensemble import FusionEnsemble, average_outputs, build_fusion, join_members
from fusion.model.fusion import FusionModel, FusionOutput

DIMS = FusionDims(
    modalities=(
        ModalityDims(modality="text", layers=2, dim=6),
        ModalityDims(modality="audio", layers=1, dim=5),
    ),
    model=ModelConfig(hidden=8, projection=8),
)


def members(count: int, dims: FusionDims = DIMS) -> list[FusionModel]:
    models = []
    for seed in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models.append(FusionModel(dims).eval())
    return models


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_three_members_are_averaged_as_by_hand() -> None:
    outputs = [
        FusionOutput(torch.zeros(1, 7), logits_of((0.5, 0.3, 0.2))),
        FusionOutput(torch.zeros(1, 7), logits_of((0.1, 0.8, 0.1))),
        FusionOutput(torch.zeros(1, 7), logits_of((0.6, 0.1, 0.3)) + 4.0),  # the same probabilities
    ]
    averaged = average_outputs(outputs)
    assert averaged.sentiment_logits.exp().squeeze().tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert averaged.emotion_logits.softmax(dim=1).squeeze().tolist() == pytest.approx([1 / 7] * 7)


def test_each_member_reads_its_own_part_of_what_is_its_own_and_all_read_what_is_shared() -> None:
    singles = members(2)
    whole = join_members(singles, own=("text",))
    own = torch.randn(3, 2, 12)  # [batch, layers, 2 members x 6]
    shared = torch.randn(3, 1, 5)
    present = torch.tensor([[True, True], [True, False], [False, True]])
    output = whole({"text": own, "audio": shared}, present)
    wanted = [
        single({"text": own[..., start : start + 6], "audio": shared}, present)
        for single, start in zip(singles, (0, 6), strict=True)
    ]
    mean = torch.stack([each.emotion_logits.softmax(1) for each in wanted]).mean(0)
    assert whole.dims.modalities[0].dim == 12
    assert torch.allclose(output.emotion_logits.exp(), mean, atol=1e-6)


def test_members_with_dialogue_context_see_the_dialogue() -> None:
    dims = FusionDims(modalities=DIMS.modalities, model=ModelConfig(context="dialogue", hidden=8))
    whole = join_members(members(2, dims))
    assert whole.context is not None
    turns = Turns(torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.arange(3))
    features = {"text": torch.randn(3, 2, 6), "audio": torch.randn(3, 1, 5)}
    output = whole(features, torch.ones(3, 2, dtype=torch.bool), turns)
    assert output.emotion_logits.shape == (3, 7)


def test_what_config_json_says_builds_the_same_model_again() -> None:
    whole = join_members(members(3), own=("text",))
    again = build_fusion(FusionDims.from_dict(whole.dims.to_dict()))
    assert isinstance(again, FusionEnsemble)
    again.load_state_dict(whole.state_dict())
    features = {"text": torch.randn(2, 2, 18), "audio": torch.randn(2, 1, 5)}
    present = torch.ones(2, 2, dtype=torch.bool)
    one, other = whole(features, present), again.eval()(features, present)
    assert np.array_equal(
        one.emotion_logits.detach().numpy(), other.emotion_logits.detach().numpy()
    )


def test_a_single_model_is_described_as_before_there_were_ensembles() -> None:
    assert set(DIMS.to_dict()) == {"modalities", "input", "model"}
    single = members(1)
    assert join_members(single) is single[0]


@pytest.mark.parametrize(
    ("members", "own", "told"),
    [(0, (), "members must be"), (2, ("video",), "own modalities"), (4, ("text",), "cannot share")],
)
def test_dims_that_cannot_be_are_refused(members: int, own: tuple, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FusionDims(modalities=DIMS.modalities, members=members, own=own)
