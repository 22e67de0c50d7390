"""Decoding of frozen Llama-type decoders in bfloat16 on a CPU, from weights laid out once for the matrix kernels.

The module tree stays as it is and keeps its bytes; this reads the same weights, joins those that take the same
input, and stores them in the kernel's own order, which a plain matrix has to be brought into at every call. Padding
is left out of every matrix product. Results equal the modules' own bit by bit (tests/parity/test_packed_llama.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_BYTES = 1 << 30
"""Weights beyond this are not laid out a second time: memory counts for more than speed then."""

_TYPES = {
    "LlamaModel", "LlamaDecoderLayer", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm", "LlamaRotaryEmbedding",
    "Linear", "Embedding", "ModuleList", "SiLUActivation", "SiLU",
}  # fmt: skip


class Past(Protocol):
    """What is read and written of a cache; shapes as in `KVCache`."""

    store: list[Tensor]
    mask: Tensor
    length: int


@dataclass(frozen=True, slots=True)
class _Map:
    """A linear map, or several of one input joined, in the kernel's order."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(*parts: nn.Linear) -> _Map:
        weight = torch.cat([part.weight.detach() for part in parts])
        bias = torch.cat([part.bias.detach() for part in parts]) if parts[0].bias is not None else None
        return _Map(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    def __call__(self, states: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(states, self.weight, self.bias, "none", [], "")
        return result


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: Tensor
    qkv: _Map
    out: _Map
    mlp_norm: Tensor
    gate_up: _Map
    down: _Map


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
    """The packed weights of one decoder, valid as long as `fits` says so. Holds no state of a call."""

    def __init__(self, decoder: Any, head: nn.Linear) -> None:
        config = decoder.config
        self._decoder, self._head = decoder, head
        self._marks = list(_marks(decoder, head))
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._width = decoder.layers[0].self_attn.head_dim
        self._scaling = decoder.layers[0].self_attn.scaling
        self._epsilon = decoder.norm.variance_epsilon
        self._layers = [_pack(layer) for layer in decoder.layers]
        self._output = _Map.of(head)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied decoder packs its own weights."""

    def fits(self, decoder: nn.Module, head: nn.Module) -> bool:
        """Whether the decoder is still the one that was packed: frozen, unhooked, its weights untouched."""
        return decoder is self._decoder and is_packable(decoder, head) and list(_marks(decoder, head)) == self._marks

    def __call__(self, embeds: Tensor, mask: Tensor, past: Past, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """New positions behind a cache, which takes their keys and values; its mask and length are the caller's part.

        Shapes:
            embeds: (B, L, D) bfloat16; mask: (B, L) bool; at: (B, L) bool or None, as in `LanguageModel.forward`
            returns: hidden (B, L, D), zero at padding; logits (P, V), or (B, L, V) without `at`
        """
        places = self._places(mask, past)
        step = mask.shape[1] == 1 and len(places.rows) == len(mask)
        states = embeds[:, 0] if step else embeds[mask]  # (T, D)
        for layer, kept in zip(self._layers, past.store, strict=True):
            states = self._apply(layer, states, kept, places, past.length, mask)
        states = self._normalise(states, self._decoder.norm.weight)
        if step:
            return states[:, None], self._output(states[:, None] if at is None else states[at[:, 0]])
        hidden = embeds.new_zeros(embeds.shape)
        hidden[mask] = states
        return hidden, self._output(hidden if at is None else hidden[at])

    def _places(self, mask: Tensor, past: Past) -> _Places:
        rows, columns = mask.nonzero(as_tuple=True)  # (T,), (T,)
        length = mask.shape[1]
        usable = past.mask[:, : past.length + length]  # (B, S)
        positions = (usable.long().cumsum(dim=1) - 1)[:, past.length :][mask]  # (T,)
        cos, sin = self._decoder.rotary_emb(self._decoder.norm.weight, positions[None])  # (1, T, d)
        half = self._width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        rotated = (len(rows), self._heads + self._groups, self._width)
        still = (len(rows), self._groups, self._width)
        cos = torch.cat([cos[0, :, None].expand(rotated), cos.new_ones(still)], dim=1)
        sin = torch.cat([sin[0, :, None].expand(rotated), sin.new_zeros(still)], dim=1)
        seen = usable[:, None].expand(-1, length, -1).tril(past.length)  # (B, L, S)
        added = torch.zeros(seen.shape, dtype=cos.dtype).masked_fill_(~seen, float("-inf"))
        return _Places(rows, columns, added.repeat(1, self._heads // self._groups, 1)[:, None], cos, sin)

    def _apply(self, layer: _Layer, states: Tensor, kept: Tensor, places: _Places, start: int, mask: Tensor) -> Tensor:
        """One decoder layer: states (T, D), kept (2, B, G, capacity, d)."""
        groups, width, half = self._groups, self._width, self._width // 2
        rows, length = mask.shape
        mixed = layer.qkv(self._normalise(states, layer.norm)).view(len(states), -1, width)  # (T, H + 2G, d)
        turned = torch.cat([mixed[..., half:], mixed[..., :half]], dim=-1).mul_(places.sin)
        mixed = (mixed * places.cos).add_(turned)
        new = mixed[:, self._heads :].view(-1, 2, groups, width)  # (T, 2, G, d)
        if length == 1:
            kept.select(3, start).copy_(new.transpose(0, 1))
            query = mixed[:, : self._heads].reshape(rows, groups, -1, width)  # (B, G, g, d)
        else:
            kept[:, :, :, start : start + length] = 0
            kept[:, places.rows, :, places.columns + start] = new
            padded = mixed.new_zeros(rows, length, self._heads, width)
            padded[places.rows, places.columns] = mixed[:, : self._heads]
            query = padded.transpose(1, 2).reshape(rows, groups, -1, width)  # (B, G, g * L, d)
        keys, values = kept.narrow(3, 0, start + length).unbind(0)  # (B, G, S, d) each
        read = F.scaled_dot_product_attention(query, keys, values, places.mask, scale=self._scaling)
        if length == 1:
            read = read.reshape(rows, -1)  # (B, H * d)
        else:
            read = read.view(rows, self._heads, length, width).transpose(1, 2)[places.rows, places.columns].flatten(1)
        states = states + layer.out(read)
        both = layer.gate_up(self._normalise(states, layer.mlp_norm))
        gate, up = both.chunk(2, dim=-1)
        return states + layer.down(F.silu(gate).mul_(up))

    def _normalise(self, states: Tensor, weight: Tensor) -> Tensor:
        """RMS norm in float32, rounded before the weight is applied, as the module does."""
        wide = states.float()
        scale = (wide * wide).mean(dim=-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return wide.mul_(scale).to(states.dtype).mul_(weight)


def is_packable(decoder: nn.Module, head: nn.Module) -> bool:
    """Whether the decoder is a frozen, unhooked Llama in bfloat16 on a CPU with such kernels, and not too big."""
    modules = [*decoder.modules(), head]
    weights = [*decoder.parameters(), *head.parameters()]
    return (
        type(decoder).__name__ == "LlamaModel"
        and {type(module).__name__ for module in modules} <= _TYPES
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and not any(weight.requires_grad for weight in weights)
        and all(weight.dtype == torch.bfloat16 and weight.device.type == "cpu" for weight in weights)
        and sum(weight.nbytes for weight in weights) <= _MOST_BYTES
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _marks(decoder: nn.Module, head: nn.Module) -> Iterator[tuple[int, int]]:
    """Where every weight lies and how often it was written."""
    for weight in (*decoder.parameters(), *head.parameters()):
        yield weight.data_ptr(), -1 if weight.is_inference() else weight._version


def _pack(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm.weight.detach(),
        _Map.of(attention.q_proj, attention.k_proj, attention.v_proj),
        _Map.of(attention.o_proj),
        layer.post_attention_layernorm.weight.detach(),
        _Map.of(mlp.gate_proj, mlp.up_proj),
        _Map.of(mlp.down_proj),
    )
