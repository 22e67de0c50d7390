"""Attention for short sequences on a CPU: three matrix products in place of the fused kernel.

Grouped heads share their keys without being repeated. With 16 queries the fused kernel's backward takes ten times
as long (benchmarks/training_speed.py); with hundreds of queries it wins, and is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "graftlm_grouped"
LARGEST_SCORES = 32_768  # queries times keys, up to which the products are quicker


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One layer's attention, with the softmax in float32.

    Shapes:
        query: (B, H, L, d); key, value: (B, G, S, d), H a multiple of G; attention_mask: (B, 1, L, S), added
        returns: (B, L, H, d)
    """
    rows, heads, length, width = query.shape
    groups, places = key.shape[1], key.shape[2]
    scaling = width**-0.5 if scaling is None else scaling
    small = query.device.type == "cpu" and length * places <= LARGEST_SCORES
    if softcap is None and not small:
        return _fused(query, key, value, attention_mask, scaling, dropout), None
    shared = (query * scaling).reshape(rows, groups, heads // groups * length, width)
    scores = (shared @ key.mT).view(rows, heads, length, places)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., :places]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)  # (B, H, L, S)
    weights = F.dropout(weights, dropout, training=module.training)
    mixed = weights.view(rows, groups, heads // groups * length, places) @ value
    return mixed.view(rows, heads, length, value.shape[-1]).transpose(1, 2).contiguous(), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return mixed.transpose(1, 2).contiguous()
