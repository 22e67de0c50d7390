"""Attention of one sequence over another, and the dense layer behind it, as the Flamingo family builds them.

What its published variants differ in (heads, norms, activation) is data: see `Geometry`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["layer", "rms"]
Activation = Literal["squared_relu", "gelu", "relu", "swiglu"]
_RMS_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and choices of a block of attention and dense layer.

    Attributes:
        heads, head_dim: H and d of the attention; their product need not be the width of what it works on
        dense_dim: width of the dense layer's hidden states
        activation: of the dense layer; swiglu has a third map, its gate
        norm: of what goes into either; qk_norm: whether queries and keys are normalised too, head by head
        dropout: of the output of either, fraction
    """

    heads: int
    head_dim: int
    dense_dim: int
    activation: Activation = "squared_relu"
    norm: Norm = "layer"
    qk_norm: bool = False
    dropout: float = 0.0


def make_norm(kind: Norm, dim: int) -> nn.Module:
    """LayerNorm with bias, or RMSNorm."""
    return nn.LayerNorm(dim) if kind == "layer" else nn.RMSNorm(dim, eps=_RMS_EPSILON)


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another; maps without biases, nothing normalised beforehand.

    A query that may read nothing gets exactly zero.
    """

    def __init__(self, dim: int, memory_dim: int, geometry: Geometry) -> None:
        super().__init__()
        inner = geometry.heads * geometry.head_dim
        self.heads, self.head_dim = geometry.heads, geometry.head_dim
        self.to_queries = nn.Linear(dim, inner, bias=False)
        self.to_keys = nn.Linear(memory_dim, inner, bias=False)
        self.to_values = nn.Linear(memory_dim, inner, bias=False)
        self.to_output = nn.Linear(inner, dim, bias=False)
        self.query_norm, self.key_norm = (
            make_norm(geometry.norm, self.head_dim) if geometry.qk_norm else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(geometry.dropout)

    def project(self, states: Tensor) -> Tensor:
        """Keys and values of what is read: (B, M, memory_dim) to (2, B, H, M, d)."""
        return torch.stack([self.key_norm(self._split(self.to_keys(states))), self._split(self.to_values(states))])

    def weights(self, states: Tensor, projected: Tensor, mask: Tensor) -> Tensor:
        """How much each query reads of what.

        Shapes:
            states: (B, L, dim); projected: (2, B, H, M, d); mask: (B, L or 1, M) bool
            returns: (B, H, L, M), each row summing to 1, or all zero where it may read nothing
        """
        queries = self.query_norm(self._split(self.to_queries(states))) * self.head_dim**-0.5
        barred = ~mask[:, None]  # (B, 1, L, M)
        scores = (queries @ projected[0].mT).masked_fill(barred, torch.finfo(queries.dtype).min)
        weights: Tensor = scores.softmax(dim=-1).masked_fill(barred, 0.0)
        return weights

    def forward(self, states: Tensor, projected: Tensor, mask: Tensor) -> Tensor:
        """What the queries read, (B, L, dim); arguments as `weights`."""
        mixed = self.weights(states, projected, mask) @ projected[1]  # (B, H, L, d)
        output: Tensor = self.dropout(self.to_output(mixed.transpose(1, 2).flatten(2)))
        return output

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, self.head_dim).transpose(1, 2)  # (B, H, T, d)


class Dense(nn.Module):
    """Two maps without biases around an activation; in swiglu a third map is its gate (arXiv:2002.05202)."""

    def __init__(self, dim: int, geometry: Geometry) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[geometry.activation]
        self.gate = nn.Linear(dim, geometry.dense_dim, bias=False) if geometry.activation == "swiglu" else None
        self.up = nn.Linear(dim, geometry.dense_dim, bias=False)
        self.down = nn.Linear(geometry.dense_dim, dim, bias=False)
        self.dropout = nn.Dropout(geometry.dropout)

    def forward(self, states: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        hidden = self.up(states)
        hidden = self.activation(hidden) if self.gate is None else self.activation(self.gate(states)) * hidden
        output: Tensor = self.dropout(self.down(hidden))
        return output


def _squared_relu(states: Tensor) -> Tensor:
    return F.relu(states).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": _squared_relu,  # arXiv:2109.08668
    "gelu": F.gelu,
    "relu": F.relu,
    "swiglu": F.silu,
}
