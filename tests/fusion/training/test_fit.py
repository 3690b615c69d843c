"""The training loop: it finds what was planted, keeps what dev chose, and repeats itself."""

import dataclasses

import pytest
import torch

from fusion.data.batches import Rows
from fusion.evaluation.scores import weighted_f1
from fusion.inference.predict import predict
from fusion.labels import UNLABELLED
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, drop_modalities, fit, warm_up_then_fall
from fusion.training.losses import LossConfig, MultiTaskLoss
from pipeline.errors import LossNotFinite

QUICK = FitConfig(epochs=5, batch_size=100, learning_rate=1e-2)
CPU = torch.device("cpu")


def train(data, dev, config=QUICK, seed=0):
    model = build_model(data, ModelConfig(hidden=64), seed=seed)
    return model, fit(model, data, dev, config, seed=seed)


def without(data, modality):
    column = data.modalities.index(modality)
    kept = [index for index in range(len(data.modalities)) if index != column]
    return dataclasses.replace(
        data,
        modalities=tuple(data.modalities[index] for index in kept),
        features={name: values for name, values in data.features.items() if name != modality},
        present=data.present[:, kept],
    )


def dev_f1(model, dev):
    output = predict(model, Rows.prepare(model, dev, CPU))
    return weighted_f1(dev.emotion.numpy(), output.emotion_logits.argmax(1).numpy())


def same_weights(one, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.heavy
def test_what_only_the_voice_tells_is_found_with_audio_and_not_by_text_alone(load_planted):
    data = load_planted("train", 600, carriers=["audio"])
    dev = load_planted("dev", 200, carriers=["audio"])
    fused, _ = train(data, dev)
    text_only, _ = train(without(data, "audio"), without(dev, "audio"))
    assert dev_f1(fused, dev) > 0.7
    assert dev_f1(text_only, without(dev, "audio")) < 0.3


@pytest.mark.heavy
def test_two_halves_of_the_evidence_beat_either(load_planted):
    options = {"carriers": ["text", "audio"], "strength": 1.8}
    data, dev = load_planted("train", 600, **options), load_planted("dev", 300, **options)
    both = dev_f1(train(data, dev)[0], dev)
    for lost in ("text", "audio"):
        alone, rest = without(data, lost), without(dev, lost)
        assert both > dev_f1(train(alone, rest)[0], rest) + 0.05


@pytest.mark.heavy
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(load_planted):
    data, dev = load_planted("train", 200), load_planted("dev", 50)
    config = dataclasses.replace(QUICK, epochs=2)
    first, history = train(data, dev, config)
    torch.rand(5)  # whatever the caller draws in between
    again, repeated = train(data, dev, config)
    other, _ = train(data, dev, config, seed=1)
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert [each.dev_loss for each in history.history] == [
        each.dev_loss for each in repeated.history
    ]


def test_training_does_not_change_the_random_state_of_the_caller(load_planted):
    data, dev = load_planted("train", 100), load_planted("dev", 50)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(data, dev, dataclasses.replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.heavy
def test_dev_chooses_the_epoch_whose_weights_stay(load_planted):
    data, dev = load_planted("train", 200), load_planted("dev", 60)
    model, result = train(data, dev, dataclasses.replace(QUICK, epochs=6))
    assert result.best.score == max(each.score for each in result.history)
    assert dev_f1(model, dev) == pytest.approx(result.best.dev_emotion_f1)


@pytest.mark.heavy
def test_a_first_epoch_that_dev_likes_best_is_kept(load_planted):
    """Train says the opposite of dev, so that every further epoch makes dev worse."""
    data, dev = load_planted("train", 300, strength=6.0), load_planted("dev", 100, strength=6.0)
    twisted = dataclasses.replace(data, emotion=(data.emotion + 1) % 7)
    model, result = train(twisted, dev, dataclasses.replace(QUICK, epochs=8, patience=3))
    assert result.best.epoch + 3 == len(result.history) < 8
    assert dev_f1(model, dev) == pytest.approx(result.best.dev_emotion_f1)


def test_rows_in_another_order_are_predicted_alike(load_planted):
    data, dev = load_planted("train", 200), load_planted("dev", 50)
    model, _ = train(data, dev, dataclasses.replace(QUICK, epochs=1))
    order = torch.randperm(50)
    rows = Rows.prepare(model, dev, CPU)
    straight = predict(model, rows).emotion_logits
    torch.testing.assert_close(predict(model, rows.pick(order)).emotion_logits, straight[order])


@pytest.mark.heavy
def test_unlabelled_rows_do_not_teach(load_planted):
    """Half of train has features of one emotion and no label: the model must not care."""
    data, dev = load_planted("train", 600), load_planted("dev", 200)
    emotion, sentiment = data.emotion.clone(), data.sentiment.clone()
    emotion[300:], sentiment[300:] = UNLABELLED, UNLABELLED
    model, _ = train(dataclasses.replace(data, emotion=emotion, sentiment=sentiment), dev)
    assert dev_f1(model, dev) > 0.7


def test_a_corpus_without_sentiments_is_chosen_by_emotion(load_planted):
    data, dev = load_planted("train", 200), load_planted("dev", 60)
    data, dev = (
        dataclasses.replace(each, sentiment=torch.full_like(each.sentiment, UNLABELLED))
        for each in (data, dev)
    )
    _, result = train(data, dev, dataclasses.replace(QUICK, epochs=2))
    assert result.best.dev_sentiment_f1 is None
    assert result.best.score == result.best.dev_emotion_f1


def test_a_loss_that_is_no_number_stops_at_once(load_planted):
    data, dev = load_planted("train", 200), load_planted("dev", 60)
    epochs = []
    model = build_model(data, ModelConfig(), seed=0)
    with torch.no_grad():
        model.heads.emotion.bias[0] = float("nan")
    with pytest.raises(LossNotFinite, match=r"nan in epoch 1.*learning_rate"):
        fit(model, data, dev, QUICK, seed=0, on_epoch=epochs.append)
    assert epochs == []


def test_each_epoch_is_reported_as_it_ends(load_planted):
    data, dev = load_planted("train", 100), load_planted("dev", 50)
    epochs = []
    model = build_model(data, ModelConfig(), seed=0)
    config = dataclasses.replace(QUICK, epochs=3)
    result = fit(model, data, dev, config, seed=0, on_epoch=epochs.append)
    assert [each.epoch for each in epochs] == [1, 2, 3]
    assert result.history == tuple(epochs)


@pytest.mark.heavy
def test_one_modality_missing_in_many_rows_trains_through(load_planted):
    data, dev = load_planted("train", 600), load_planted("dev", 200)
    present = data.present.clone()
    present[::2, 0] = False
    features = {**data.features, "text": data.features["text"].clone()}
    features["text"][::2] = float("nan")
    model, _ = train(dataclasses.replace(data, present=present, features=features), dev)
    assert dev_f1(model, dev) > 0.7


def test_modality_dropout_drops_only_what_is_there_and_never_everything():
    torch.manual_seed(0)
    present = torch.rand(5000, 3) > 0.4
    dropped = drop_modalities(present, 0.7)
    assert not (dropped & ~present).any()
    had_some = present.any(dim=1)
    assert dropped[had_some].any(dim=1).all()
    assert dropped.sum() < 0.8 * present.sum()


def test_the_learning_rate_rises_in_steps_and_falls_along_half_a_cosine():
    factor = warm_up_then_fall(100, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [factor(step) for step in (10, 55, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert all(factor(step + 1) < factor(step) for step in range(10, 100))
    assert warm_up_then_fall(100, 0.0)(0) == 1.0


def test_a_single_modality_is_never_dropped():
    present = torch.ones(100, 1, dtype=torch.bool)
    assert drop_modalities(present, 0.9).all()


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"modality_dropout": -0.1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitConfig(**wrong)


@pytest.mark.heavy
def test_label_smoothing_reaches_the_loss_that_is_trained_on_and_the_one_that_is_reported(
    load_planted,
):
    data, dev = load_planted("train", 200), load_planted("dev", 50)
    smooth = dataclasses.replace(QUICK, loss=LossConfig(label_smoothing=0.5))
    plain = dataclasses.replace(QUICK, loss=LossConfig(label_smoothing=0.0))
    told = {}
    for config in (plain, smooth):
        model, result = train(data, dev, config)
        output = predict(model, Rows.prepare(model, dev, CPU))
        by_hand = MultiTaskLoss.from_labels(config.loss, data.emotion, data.sentiment)
        assert result.best.dev_loss == pytest.approx(
            by_hand(output, dev.emotion, dev.sentiment).item(), rel=1e-5
        )
        told[config] = result.history[-1].train_loss
    # Where half of each label is spread over all classes, no model can come near 0.
    assert told[smooth] > 1.3 * told[plain]
