"""The dialogue around an utterance: seen where it may be, never across dialogues."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fusion.data.batches import Rows, epoch_batches, prediction_batches
from fusion.data.split import FusionData
from fusion.inference.predict import predict
from fusion.model.dialogue import DialogueContext, Turns
from fusion.model.dims import ModelConfig
from fusion.model.fusion import FusionModel
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, fit
from pipeline.schema import ClipKey

CPU = torch.device("cpu")


def make_turns(*dialogues: int) -> Turns:
    """make_turns(3, 2): a dialogue of three and one of two utterances."""
    keys = [
        ClipKey("train", number, place)
        for number, length in enumerate(dialogues)
        for place in range(length)
    ]
    return Turns.of(keys, ["Joey"] * len(keys))


def make_context(*, future: bool) -> DialogueContext:
    torch.manual_seed(0)
    context = DialogueContext(8, future=future, dropout=0.0)
    torch.nn.init.normal_(context.out.weight)
    torch.nn.init.normal_(context.bias)
    return context.eval()


def test_positions_close_gaps_and_follow_utterance_ids_not_rows() -> None:
    keys = [ClipKey("train", 7, 4), ClipKey("dev", 7, 0), ClipKey("train", 7, 1)]
    turns = Turns.of(keys, ["Ross", "Joey", "Ross"])
    assert turns.dialogue.tolist() == [0, 1, 0]
    assert turns.position.tolist() == [1, 0, 0]
    assert turns.speaker.tolist() == [0, 1, 0]


def test_an_unnamed_speaker_differs_from_all_named_ones() -> None:
    """Subtitles name nobody, and in a dialogue the next to speak is mostly another."""
    keys = [ClipKey("train", 0, place) for place in range(5)]
    speaker = Turns.of(keys, ["", "Joey", "", "Joey", ""]).speaker.tolist()
    assert speaker[1] == speaker[3]
    assert len(set(speaker)) == 4


def test_context_starts_as_a_no_op() -> None:
    hidden = torch.randn(5, 8)
    context = DialogueContext(8, future=True, dropout=0.0)
    assert torch.equal(context(hidden, make_turns(3, 2)), hidden)


@pytest.mark.parametrize("future", [False, True])
def test_other_dialogues_change_nothing(future: bool) -> None:
    context, hidden = make_context(future=future), torch.randn(5, 8)
    changed = hidden.clone()
    changed[3:] *= -3
    before, after = (context(h, make_turns(3, 2))[:3] for h in (hidden, changed))
    torch.testing.assert_close(before, after)


def test_later_utterances_are_used_only_with_future() -> None:
    hidden = torch.randn(3, 8)
    changed = hidden.clone()
    changed[2] *= -3  # the norm takes away what is added to all
    past, both = make_context(future=False), make_context(future=True)
    turns = make_turns(3)
    torch.testing.assert_close(past(hidden, turns)[:2], past(changed, turns)[:2])
    assert not torch.allclose(both(hidden, turns)[:2], both(changed, turns)[:2])


def test_the_order_of_rows_does_not_matter() -> None:
    context, hidden, turns = make_context(future=False), torch.randn(5, 8), make_turns(3, 2)
    order = torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(
        context(hidden[order], turns.pick(order)), context(hidden, turns)[order]
    )


def test_a_bias_knows_distance_and_speaker() -> None:
    keys = [ClipKey("train", 0, place) for place in range(20)]
    turns = Turns.of(keys, ["Joey", "Ross"] * 10)
    context = make_context(future=True)
    bias = context._bias_of(turns)
    assert bias[2, 0] == context.bias[1, context.reach + 2]  # same speaker, two turns later
    assert bias[0, 1] == context.bias[0, context.reach - 1]
    assert bias[19, 0] == context.bias[0, 2 * context.reach]  # far apart counts as `reach` apart


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_batches_hold_whole_dialogues_and_every_row_once(steps: int) -> None:
    turns = make_turns(4, 1, 24, 2, 2, 7, 3)
    batches = epoch_batches(turns, steps, torch.Generator().manual_seed(0), whole_dialogues=True)
    assert len(batches) == steps
    assert sorted(torch.cat(batches).tolist()) == list(range(43))
    homes = [set(turns.dialogue[batch].tolist()) for batch in batches]
    assert sum(len(home) for home in homes) == 7


def test_predicting_in_batches_keeps_dialogues_whole() -> None:
    turns = make_turns(4, 1, 24, 2, 2, 7, 3)
    batches = prediction_batches(turns, 5, whole_dialogues=True)
    assert sorted(torch.cat(batches).tolist()) == list(range(43))
    assert sum(len(set(turns.dialogue[batch].tolist())) for batch in batches) == 7


def delayed(data: FusionData) -> FusionData:
    """Each row's label becomes that which the row before it carries; a dialogue's first row keeps
    its own."""
    turns = data.turns
    before = torch.arange(len(data)) - 1
    before = torch.where(turns.position > 0, before, torch.arange(len(data)))
    return dataclasses.replace(data, emotion=data.emotion[before], sentiment=data.sentiment[before])


def train_delayed(load_planted: Callable, model: ModelConfig) -> tuple[FusionModel, FusionData]:
    planted = {"carriers": ("text",), "modalities": ("text",), "strength": 4.0}
    train, dev = (delayed(load_planted(s, n, **planted)) for s, n in (("train", 600), ("dev", 150)))
    built = build_model(train, model, seed=0)
    fit(built, train, dev, FitConfig(epochs=12, learning_rate=1e-2, batch_size=60), seed=0)
    return built, dev


def accuracy(model: FusionModel, data: FusionData) -> float:
    output = predict(model, Rows.prepare(model, data, CPU), batch_size=40)
    return float((output.emotion_logits.argmax(1) == data.emotion).float().mean())


@pytest.mark.heavy
def test_a_label_that_the_previous_utterance_carries_is_found_with_context_alone(
    load_planted: Callable,
) -> None:
    small = {"projection": 32, "hidden": 64, "dropout": 0.1}
    alone, dev = train_delayed(load_planted, ModelConfig(**small))  # type: ignore[arg-type]
    seeing, _ = train_delayed(load_planted, ModelConfig(context="dialogue", **small))  # type: ignore[arg-type]
    assert accuracy(alone, dev) < 0.5
    assert accuracy(seeing, dev) > 0.75
    # The same rows in another order are the same dialogues.
    order = np.random.default_rng(0).permutation(len(dev))
    assert accuracy(seeing, dev.take(order)) == pytest.approx(accuracy(seeing, dev))


def test_a_context_model_without_dialogues_is_an_error_and_not_a_guess() -> None:
    from fusion.model.dims import FusionDims, ModalityDims

    dims = FusionDims(
        modalities=(ModalityDims(modality="text", layers=1, dim=4),),
        model=ModelConfig(context="dialogue"),
    )
    with pytest.raises(ValueError, match="needs to know the dialogues"):
        FusionModel(dims)({"text": torch.zeros(2, 1, 4)}, torch.ones(2, 1, dtype=torch.bool))


def test_future_without_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context dialogue"):
        ModelConfig(future=True)
