"""An average of weights over steps, and teachers, in fine-tuning."""

import pytest
import torch
from torch import nn

from fusion.finetuning.averaging import MovingAverage
from fusion.finetuning.job import FinetuneConfig
from fusion.finetuning.loop import TuneConfig
from fusion.training.losses import LossConfig
from pipeline.errors import UsageError


def test_the_average_is_that_of_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = MovingAverage(model, 0.5)
        for value in (2.0, 4.0, 8.0):
            model.weight.fill_(value)
            average.update()
    wanted = 1.0
    for steps, value in enumerate((2.0, 4.0, 8.0), start=1):
        decay = min(0.5, (1 + steps) / (10 + steps))
        wanted = decay * wanted + (1 - decay) * value
    with average.in_place():
        assert model.weight.item() == pytest.approx(wanted)
    assert model.weight.item() == 8.0


def test_a_restored_average_goes_on_where_it_was() -> None:
    def steps(average: MovingAverage, model: nn.Linear, values: list[float]) -> None:
        with torch.no_grad():
            for value in values:
                model.weight.fill_(value)
                average.update()

    model = nn.Linear(1, 1, bias=False)
    whole, broken = MovingAverage(model, 0.9), MovingAverage(model, 0.9)
    steps(whole, model, [1.0, 2.0, 5.0])
    steps(broken, model, [1.0])
    resumed = MovingAverage(model, 0.9)
    resumed.restore(broken.state())
    steps(resumed, model, [2.0, 5.0])
    assert resumed.state()["steps"] == 3
    assert torch.equal(resumed.state()["average"][0], whole.state()["average"][0])


def test_the_running_statistics_of_batchnorm_are_averaged_with_the_weights() -> None:
    model = nn.BatchNorm1d(1, momentum=1.0)  # its statistics are those of the last batch
    average = MovingAverage(model, 0.5)
    for value in (4.0, 8.0):
        model(torch.full((2, 1), value))
        average.update()
    wanted = 0.0
    for steps, value in enumerate((4.0, 8.0), start=1):
        decay = min(0.5, (1 + steps) / (10 + steps))
        wanted = decay * wanted + (1 - decay) * value
    assert model.running_mean is not None
    with average.in_place():
        assert model.running_mean.item() == pytest.approx(wanted)
    assert model.running_mean.item() == 8.0


def test_without_a_decay_nothing_is_kept() -> None:
    average = MovingAverage(nn.Linear(2, 2), 0.0)
    average.update()
    assert average.state() == {"steps": 0, "average": []}


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\)"):
        TuneConfig(ema=1.0)


def test_settings_of_a_teacher_without_one_are_refused() -> None:
    tune = TuneConfig(loss=LossConfig(teacher_temperature=4.0))
    with pytest.raises(UsageError, match=r"tune\.loss\.teacher_temperature = 4\.0.*--distil"):
        FinetuneConfig(tune=tune)
