"""Gives networks the dropout of `dropout.py`, and those of transformers attention with it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.encoders.dropout import ByteDropout, drop

NAME = "meld_bytes"  # among the ways that transformers knows
_OF_OTHER_KINDS = ("softcap", "position_bias", "is_causal", "output_attentions")


def drop_by_bytes(network: nn.Module) -> None:
    """Changes the dropout of a network on the CPU, in place; what it computes in evaluation mode
    stays what it was."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p).train(child.training))
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """query, key, value [batch, heads, tokens, width of a head] -> [batch, tokens, heads, width]"""
    is_plain = (
        not getattr(module, "is_causal", True)
        and query.shape[:2] == key.shape[:2]
        and all(more.get(name) in (None, False) for name in _OF_OTHER_KINDS)
    )
    if dropout == 0 or not is_plain or scaling is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    scores = query @ key.transpose(2, 3) * scaling  # [batch, heads, tokens, tokens]
    if attention_mask is not None:
        seen = attention_mask
        scores = (
            scores.masked_fill(~seen, -torch.inf) if seen.dtype is torch.bool else scores + seen
        )
    weights = drop(scores.softmax(dim=3).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
