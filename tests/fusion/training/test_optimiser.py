"""AdamW without PyTorch's class for it."""

import subprocess
import sys

import pytest
import torch

from fusion.training.optimiser import AdamW


def test_its_steps_are_those_of_pytorch_to_the_bit() -> None:
    def tensors() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(shape, generator=generator).requires_grad_()
            for shape in ((2, 5, 3), (2, 4), (2, 3))
        ]

    mine, theirs = tensors(), tensors()
    optimiser = AdamW([(mine[:1], 0.1), (mine[1:], 0.0)])
    wanted = torch.optim.AdamW(
        [
            {"params": theirs[:1], "weight_decay": 0.1},
            {"params": theirs[1:], "weight_decay": 0.0},
        ],
        fused=True,
    )
    for step, rate in enumerate((1e-2, 5e-3, 1e-3)):
        for group in wanted.param_groups:
            group["lr"] = rate
        for each in (mine, theirs):
            # The last has no gradient in the first step.
            used = each if step else each[:2]
            sum(((value + step) ** 2).sum() for value in used).backward()  # type: ignore[union-attr]
        optimiser.step(rate)
        wanted.step()
        optimiser.zero_grad()
        wanted.zero_grad()
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert all(each.grad is None for each in mine)


@pytest.mark.heavy
def test_a_training_loop_does_not_load_the_compiler() -> None:
    """It takes longer to import than a small training takes."""
    code = (
        "import sys, torch\n"
        "from fusion.training.optimiser import AdamW\n"
        "weight = torch.ones(2, 2, requires_grad=True)\n"
        "optimiser = AdamW([([weight], 0.1)])\n"
        "weight.sum().backward()\n"
        "optimiser.step(0.1)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
