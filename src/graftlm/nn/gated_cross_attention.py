"""The gated cross-attention dense block (Flamingo §3.1.2 and appendix A.1.2, arXiv:2204.14198)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from graftlm.nn.attention import CrossAttention, Dense, Geometry, make_norm

GateSize = Literal["scalar", "vector"]
GateInit = Literal["closed", "open"]


class ReadableMemory(Protocol):
    """What a block reads; shapes as in `GatedCrossAttention.forward`."""

    @property
    def states(self) -> Tensor:
        """(B, M, memory_dim)."""

    @property
    def mask(self) -> Tensor:
        """(B, L, M) bool."""

    @property
    def projected(self) -> Mapping[Any, Tensor]:
        """Keys and values (2, B, H, M, d) by the block that made them."""


class GatedCrossAttention(nn.Module):
    """hidden + tanh(gate) * what it reads, then + tanh(gate) * dense: a fresh block leaves hidden as it came.

    Words that may read nothing get nothing from the attention, and still go through the dense layer.

    Args:
        dim: D of the language model; memory_dim: width of what is read
        gate: scalar = one number a gate, vector = one for each of the D dimensions (Idefics)
        init: what makes a fresh block change nothing: closed = gates at zero (the paper); open = gates at one, and the
            last map of either branch at zero. A gate that opens shows a branch in a random direction, and so long
            learns little; behind an open one the maps learn from the first step (docs/log.md).
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int,
        geometry: Geometry,
        *,
        gate: GateSize = "scalar",
        init: GateInit = "closed",
    ) -> None:
        super().__init__()
        start = torch.full((1 if gate == "scalar" else dim,), float(init == "open"))
        self.norm_attention = make_norm(geometry.norm, dim)
        self.attention = CrossAttention(dim, memory_dim, geometry)
        self.attention_gate = nn.Parameter(start.clone())
        self.norm_dense = make_norm(geometry.norm, dim)
        self.dense = Dense(dim, geometry)
        self.dense_gate = nn.Parameter(start.clone())
        if init == "open":
            nn.init.zeros_(self.attention.to_output.weight)
            nn.init.zeros_(self.dense.down.weight)

    def project(self, states: Tensor) -> Tensor:
        """Keys and values of a memory, which stay the same for all words: (B, M, memory_dim) to (2, B, H, M, d)."""
        return self.attention.project(states.to(self.attention.to_keys.weight.dtype))

    def forward(self, hidden: Tensor, memory: ReadableMemory) -> Tensor:
        """The hidden states (B, L, dim) that the decoder layer is to see, in the block's own precision."""
        hidden = hidden.to(self.attention.to_queries.weight.dtype)
        read = self.attention(self.norm_attention(hidden), self._projected(memory), memory.mask)
        hidden = hidden + self.attention_gate.tanh() * read
        added: Tensor = self.dense_gate.tanh() * self.dense(self.norm_dense(hidden))
        return hidden + added

    def weights(self, hidden: Tensor, memory: ReadableMemory) -> Tensor:
        """How much each word reads of what: (B, H, L, M)."""
        hidden = hidden.to(self.attention.to_queries.weight.dtype)
        return self.attention.weights(self.norm_attention(hidden), self._projected(memory), memory.mask)

    def gates(self) -> tuple[float, float]:
        """How far it is open, attention and dense layer, from 0 to 1: mean of |tanh| over the dimensions."""
        attention, dense = (float(gate.detach().tanh().abs().mean()) for gate in (self.attention_gate, self.dense_gate))
        return attention, dense

    def _projected(self, memory: ReadableMemory) -> Tensor:
        made = memory.projected.get(self)
        return self.project(memory.states) if made is None else made
