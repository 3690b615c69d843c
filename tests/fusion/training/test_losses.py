"""Class weights and the two-head loss, by hand."""

import pytest
import torch

from fusion.labels import UNLABELLED
from fusion.model.fusion import FusionOutput
from fusion.training.losses import LossConfig, MultiTaskLoss, class_weights, head_loss


def test_weights_are_the_inverse_counts_with_mean_one():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 2)
    # 1/6, 1/3, 1/2 have the mean 1/3
    expected = torch.tensor([0.5, 1.0, 1.5])
    torch.testing.assert_close(class_weights(labels, 3, power=1.0), expected)


def test_half_a_power_takes_the_root():
    labels = torch.tensor([0] * 9 + [1])
    # 1/3 and 1 have the mean 2/3
    torch.testing.assert_close(class_weights(labels, 2, power=0.5), torch.tensor([0.5, 1.5]))


def test_power_zero_weighs_all_classes_alike():
    labels = torch.tensor([0] * 9 + [1])
    assert class_weights(labels, 2, power=0.0).tolist() == [1.0, 1.0]


def test_a_class_without_rows_gets_one_and_unlabelled_rows_count_nowhere():
    labels = torch.tensor([0, 0, 2, UNLABELLED, UNLABELLED])
    weights = class_weights(labels, 3, power=1.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1.0, 4 / 3]))


def test_no_label_at_all_gives_plain_ones():
    assert class_weights(torch.full((4,), UNLABELLED), 3, power=1.0).tolist() == [1.0] * 3


def test_unlabelled_rows_change_nothing():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, UNLABELLED, UNLABELLED])
    weights = torch.tensor([0.5, 1.0, 2.0])
    with_them = head_loss(logits, labels, weights, smoothing=0.1)
    torch.testing.assert_close(with_them, head_loss(logits[:4], labels[:4], weights, 0.1))


def test_without_smoothing_it_is_the_weighted_cross_entropy():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, 1, 2, 1, 0, 0]), torch.tensor([0.5, 1.0, 2.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(head_loss(logits, labels, weights, smoothing=0.0), expected)


def test_a_batch_without_labels_costs_nothing_and_moves_nothing():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = head_loss(logits, torch.full((4,), UNLABELLED), torch.ones(3), smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_the_heads_add_up_by_their_weights():
    output = FusionOutput(torch.zeros(2, 7), torch.zeros(2, 3))
    labels = torch.tensor([0, 1])
    config = LossConfig(emotion_weight=2.0, sentiment_weight=0.5)
    loss = MultiTaskLoss.from_labels(config, labels, labels)(output, labels, labels)
    expected = 2 * torch.log(torch.tensor(7.0)) + 0.5 * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(loss, expected)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="label_smoothing"):
        LossConfig(label_smoothing=1.0)
    with pytest.raises(ValueError, match="above 0"):
        LossConfig(emotion_weight=0, sentiment_weight=0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sentiment_weight must be finite"):
            LossConfig(sentiment_weight=wrong)
