"""Decoding of frozen Llama-type decoders in bfloat16 on a CPU, from weights laid out once for the matrix kernels.

Padding is left out of every matrix product. Results equal the modules' own bit by bit
(tests/parity/test_packed_llama.py); cross-attention blocks see what they see there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.lm.base import Memory
from graftlm.lm.frozen_llama import FrozenLayer, FrozenLlama


class Past(Protocol):
    """What is read and written of a cache; shapes as in `KVCache`."""

    mask: Tensor
    length: int

    def layer(self, index: int) -> Tensor:
        """Keys and values of one layer, (2, B, G, capacity, d)."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A memory and the blocks that read it, by decoder layer."""

    memory: Memory
    blocks: Mapping[int, nn.Module]

    def apply(self, index: int, states: Tensor, mask: Tensor) -> Tensor:
        """What layer `index` is to see: states (T, D) of the positions in mask (B, L)."""
        if index not in self.blocks:
            return states
        padded = states.new_zeros(*mask.shape, states.shape[1])
        padded[mask] = states
        changed: Tensor = self.blocks[index](padded, self.memory)
        return changed[mask].to(states.dtype)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the new positions of a batch stand; T of its B x L positions are not padding.

    Shapes:
        rows, columns: (T,) long; mask: (B, 1, g * L, S), added to the scores, g query heads to a key head
        cos, sin: (T, H + 2G, d), rotation of queries and keys; 1 and 0 for the values
    """

    rows: Tensor
    columns: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor


class PackedLlama:
    """Decoding with the weights of one frozen decoder in bfloat16. Holds no state of a call."""

    def __init__(self, weights: FrozenLlama) -> None:
        self._weights = weights

    def __call__(
        self,
        embeds: Tensor,
        mask: Tensor,
        past: Past,
        at: Tensor | None,
        wanted: tuple[Sequence[int], int],
        attached: Attached | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """New positions behind a cache, which takes their keys and values; its mask and length are the caller's part.

        Shapes:
            embeds: (B, L, D) bfloat16; mask: (B, L) bool; at: (B, L) bool or None, as in `LanguageModel.forward`;
                wanted: of `wanted_layers`
            returns: logits (P, V), or (B, L, V) without `at`; hidden (B, L, D) and the wanted layers, zero at padding
        """
        places, weights = self._places(mask, past), self._weights
        step = mask.shape[1] == 1 and len(places.rows) == len(mask)
        states = embeds[:, 0] if step else embeds[mask]  # (T, D)
        (numbers, depth), held = wanted, {}
        if depth == len(weights.layers):
            weights.lay_out()
        for index, layer in enumerate(weights.layers[:depth]):
            held[index] = states
            if attached is not None:
                states = attached.apply(index, states, mask)
            states = self._apply(layer, states, past.layer(index), places, past.length, mask)
        if depth == len(weights.layers):
            states, _ = weights.normalise(states, weights.norm)
        held[depth] = states
        padded = {number: _padded(held[number], mask, step=step) for number in {depth, *numbers}}
        hidden = padded[depth]
        logits = weights.output(hidden if at is None else hidden[at])
        return logits, hidden, tuple(padded[number] for number in numbers)

    def _places(self, mask: Tensor, past: Past) -> _Places:
        rows, columns = mask.nonzero(as_tuple=True)  # (T,), (T,)
        length = mask.shape[1]
        usable = past.mask[:, : past.length + length]  # (B, S)
        positions = (usable.long().cumsum(dim=1) - 1)[:, past.length :][mask]  # (T,)
        heads, groups, width = self._weights.heads, self._weights.groups, self._weights.width
        cos, sin = self._weights.rotation(positions)  # (T, d)
        rotated, still = (len(rows), heads + groups, width), (len(rows), groups, width)
        cos = torch.cat([cos[:, None].expand(rotated), cos.new_ones(still)], dim=1)
        sin = torch.cat([sin[:, None].expand(rotated), sin.new_zeros(still)], dim=1)
        seen = usable[:, None].expand(-1, length, -1).tril(past.length)  # (B, L, S)
        added = torch.zeros(seen.shape, dtype=cos.dtype).masked_fill_(~seen, float("-inf"))
        return _Places(rows, columns, added.repeat(1, heads // groups, 1)[:, None], cos, sin)

    def _apply(
        self, layer: FrozenLayer, states: Tensor, kept: Tensor, places: _Places, start: int, mask: Tensor
    ) -> Tensor:
        """One decoder layer: states (T, D), kept (2, B, G, capacity, d)."""
        weights = self._weights
        heads, groups, width, half = weights.heads, weights.groups, weights.width, weights.width // 2
        rows, length = mask.shape
        step = length == 1 and len(states) == rows
        normed, _ = weights.normalise(states, layer.norm)
        mixed = layer.qkv(normed).view(len(states), -1, width)  # (T, H + 2G, d)
        turned = mixed.roll(half, -1).mul_(places.sin)
        mixed = (mixed * places.cos).add_(turned)
        new = mixed[:, heads:].view(-1, 2, groups, width)  # (T, 2, G, d)
        if step:
            kept.select(3, start).copy_(new.transpose(0, 1))
            query = mixed[:, :heads].reshape(rows, groups, -1, width)  # (B, G, g, d)
        else:
            kept[:, :, :, start : start + length] = 0
            kept[:, places.rows, :, places.columns + start] = new
            padded = mixed.new_zeros(rows, length, heads, width)
            padded[places.rows, places.columns] = mixed[:, :heads]
            query = padded.transpose(1, 2).reshape(rows, groups, -1, width)  # (B, G, g * L, d)
        keys, values = kept.narrow(3, 0, start + length).unbind(0)  # (B, G, S, d) each
        read = F.scaled_dot_product_attention(query, keys, values, places.mask, scale=weights.scaling)
        if step:
            read = read.reshape(rows, -1)  # (B, H * d)
        else:
            read = read.view(rows, heads, length, width).transpose(1, 2)[places.rows, places.columns].flatten(1)
        states = states + layer.out(read)
        normed, _ = weights.normalise(states, layer.mlp_norm)
        gate, up = layer.gate_up(normed).chunk(2, dim=-1)
        return states + layer.down(F.silu(gate).mul_(up))


def _padded(states: Tensor, mask: Tensor, *, step: bool) -> Tensor:
    """(T, D) to (B, L, D), zero at padding; `step`: T is B."""
    if step:
        return states[:, None]
    full = states.new_zeros(*mask.shape, states.shape[-1])
    full[mask] = states
    return full
