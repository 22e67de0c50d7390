"""The weights of a frozen Llama-type decoder on a CPU, as its quick passes read them.

The module tree stays as it is and keeps its bytes. Maps of one input are joined. For decoding, in bfloat16, they are
stored in the kernel's own order, which a plain matrix has to be brought into at every call; training steps, with many
rows, take the plain ones. Pages of the weights that merely mirror a file and are not read are given back to the system,
so that one copy lies in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.lm.hooks import is_memory_hook
from graftlm.lm.pages import give_back

_MANY_ROWS = 64
"""From so many on the kernel's own order is worth a twelfth, at twice the memory where both are held."""

_MOST_BYTES = 1 << 30
"""Weights beyond this are not laid out a second time: memory counts for more than speed then."""

_TYPES = {
    "LlamaModel", "LlamaDecoderLayer", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm", "LlamaRotaryEmbedding",
    "Linear", "Embedding", "ModuleList", "SiLUActivation", "SiLU",
}  # fmt: skip


class FrozenMap:
    """A frozen linear map, or several of one input joined.

    Args:
        packs: for few rows in the kernel's order, where a plain matrix takes twice as long; for many it does as well
        packs_gradient: for gradients too, which pays for a wide output alone
    """

    def __init__(self, *parts: nn.Linear, packs: bool, packs_gradient: bool = False) -> None:
        self._parts = parts
        self._packs, self._packs_gradient = packs, packs_gradient
        self._joined: Tensor | None = None
        self._packed: Tensor | None = None
        self._transposed: Tensor | None = None
        bias = parts[0].bias is not None
        self._bias = torch.cat([part.bias.detach() for part in parts]) if bias else None

    def __call__(self, states: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not self._packs:
            outputs = [F.linear(states, part.weight, part.bias) for part in self._parts]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self._packed is None and states.numel() >= _MANY_ROWS * states.shape[-1]:
            return F.linear(states, self.joined(), self._bias)
        return _product(states, self.packed(), self._bias)

    def gradient(self, grads: Tensor) -> Tensor:
        """Gradient of the input (T, in), given that of the output (T, out)."""
        if self._packs_gradient:
            return _product(grads, self.transposed(), None)
        if self._packs:
            return grads @ self.joined()
        pieces = torch.split(grads, [part.out_features for part in self._parts], dim=1)
        result: Tensor = pieces[0] @ self._parts[0].weight
        for piece, part in zip(pieces[1:], self._parts[1:], strict=True):
            result.addmm_(piece, part.weight)
        return result

    def lay_out(self, *, gradients: bool) -> None:
        """Makes what decoding takes, or what a training step does."""
        if self._packs_gradient or not gradients:
            self.packed()
        if gradients:
            _ = self.transposed() if self._packs_gradient else self.joined()

    def joined(self) -> Tensor:
        """The joined weights, (out, in)."""
        if len(self._parts) == 1:
            return self._parts[0].weight.detach()
        if self._joined is None:
            self._joined = torch.cat([part.weight.detach() for part in self._parts])
            give_back([part.weight for part in self._parts])
        return self._joined

    def packed(self) -> Tensor:
        """The joined weights in the kernel's order."""
        if self._packed is None:
            self._packed = self._reordered([part.weight.detach() for part in self._parts], dim=0)
        return self._packed

    def transposed(self) -> Tensor:
        """The same for gradients."""
        if self._transposed is None:
            self._transposed = self._reordered([part.weight.detach().T for part in self._parts], dim=1)
        return self._transposed

    def _reordered(self, weights: list[Tensor], dim: int) -> Tensor:
        joined = weights[0] if len(weights) == 1 else torch.cat(weights, dim=dim)
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined)
        give_back([part.weight for part in self._parts])
        return packed


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(states, weight, bias, "none", [], "")
    return result


@dataclass(frozen=True, slots=True)
class FrozenLayer:
    """One decoder layer; the norms are float vectors of width D."""

    norm: Tensor
    qkv: FrozenMap
    out: FrozenMap
    mlp_norm: Tensor
    gate_up: FrozenMap
    down: FrozenMap


class FrozenLlama:
    """The weights of one decoder, valid as long as `fits` says so. Holds no state of a call.

    Attributes:
        heads: H; groups: G, heads of keys and values; width: d; scaling: of scores; epsilon: of the norms
        layers, norm, output: from below to above; rotary: the decoder's own module
    """

    def __init__(self, decoder: Any, head: nn.Linear) -> None:
        config, packs = decoder.config, is_packable(decoder, head)
        self._decoder, self._head = decoder, head
        self._marks = list(_marks(decoder, head))
        self.packs = packs
        self.heads, self.groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.width = int(decoder.layers[0].self_attn.head_dim)
        self.scaling = float(decoder.layers[0].self_attn.scaling)
        self.epsilon = float(decoder.norm.variance_epsilon)
        self.layers = [_layer(layer, packs) for layer in decoder.layers]
        self.norm: Tensor = decoder.norm.weight.detach()
        self.output = FrozenMap(head, packs=packs, packs_gradient=packs)
        self._laid_out: set[bool] = set()  # for decoding, for gradients
        if packs:
            give_back(decoder.parameters())  # they are read once more, map by map

    def lay_out(self, *, gradients: bool = False) -> None:
        """Lays out all weights at once, for decoding or for gradients.

        Map by map, with a batch's tensors in between, they would leave holes in the heap that nothing else fits.
        """
        if not self.packs or gradients in self._laid_out:
            return
        maps = [part for layer in self.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        for part in (self.output, *maps):  # the largest first, while little else is held
            part.lay_out(gradients=gradients)
        self._laid_out.add(gradients)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied decoder joins its own weights."""

    def __reduce__(self) -> Any:
        """A decoder in another process joins its own weights."""
        return type(None), ()

    def fits(self, decoder: nn.Module, head: nn.Module) -> bool:
        """Whether the decoder is still the one that was read: frozen, unhooked, its weights untouched.

        A write through `weight.data` counts as none: torch does not count it.
        """
        return (
            decoder is self._decoder and is_frozen_llama(decoder, head) and list(_marks(decoder, head)) == self._marks
        )

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, d) of positions (T,), for ``x * cos + swapped(x) * sin`` with halves swapped."""
        cos, sin = self._decoder.rotary_emb(self.norm, positions[None])  # (1, T, d)
        half = self.width // 2
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def normalise(self, states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """RMS norm in float32, rounded before the weight is applied, as the module does; and 1 / RMS, (T, 1)."""
        wide = states.float()
        scale = (wide * wide).mean(dim=-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return (wide * scale).to(states.dtype).mul_(weight), scale


def is_frozen_llama(decoder: nn.Module, head: nn.Module) -> bool:
    """Whether the decoder is a frozen Llama of one precision on a CPU, without hooks that would go unheard."""
    modules = [*decoder.modules(), head]
    weights = [*decoder.parameters(), *head.parameters()]
    return (
        type(decoder).__name__ == "LlamaModel"
        and {type(module).__name__ for module in modules} <= _TYPES
        and not any(_is_hooked(module) for module in modules)
        and not any(weight.requires_grad for weight in weights)
        and {weight.dtype for weight in weights} in ({torch.bfloat16}, {torch.float32})
        and all(weight.device.type == "cpu" for weight in weights)
        and not (decoder.training and _drops(decoder))
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether a hook is there beside those of memory, which the quick passes read themselves."""
    return bool(module._forward_hooks) or not all(map(is_memory_hook, module._forward_pre_hooks.values()))


def _drops(decoder: Any) -> bool:
    return bool(decoder.config.attention_dropout)


def is_packable(decoder: nn.Module, head: nn.Module) -> bool:
    """Whether it is in bfloat16 besides, on a CPU with such kernels, and not too big."""
    weights = [*decoder.parameters(), *head.parameters()]
    return (
        is_frozen_llama(decoder, head)
        and weights[0].dtype == torch.bfloat16
        and sum(weight.nbytes for weight in weights) <= _MOST_BYTES
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _marks(decoder: nn.Module, head: nn.Module) -> Iterator[tuple[int, int]]:
    """Where every weight lies and how often it was written."""
    for weight in (*decoder.parameters(), *head.parameters()):
        yield weight.data_ptr(), -1 if weight.is_inference() else weight._version


def _layer(layer: Any, packs: bool) -> FrozenLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return FrozenLayer(
        layer.input_layernorm.weight.detach(),
        FrozenMap(attention.q_proj, attention.k_proj, attention.v_proj, packs=packs),
        FrozenMap(attention.o_proj, packs=packs),
        layer.post_attention_layernorm.weight.detach(),
        FrozenMap(mlp.gate_proj, mlp.up_proj, packs=packs),
        FrozenMap(mlp.down_proj, packs=packs),
    )
