"""A whole pass of a frozen Llama-type decoder on a CPU, with a backward pass written out by hand.

Only inputs, prefixes and what cross-attention blocks read get gradients, so no input of a frozen map is kept. Padding
goes through no map, and what rows begin with in common goes once; the residual gradient is summed in float32 from one
block to the next. Values equal the modules' own bit by bit up to the attention's rounding, gradients to 1e-5 in float32
(tests/parity/test_llama_gradient.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.errors import UnsupportedLMError
from graftlm.lm.base import LMInputs
from graftlm.lm.checks import position_ids
from graftlm.lm.frozen_llama import FrozenLayer, FrozenLlama
from graftlm.losses import scaled_gradient, summed_cross_entropy

_KEPT = 9
"""Tensors kept per layer."""

KEPT_SCORES = 32_768
"""Queries times keys of a row up to which the attention's shares are kept for the backward pass; else made anew."""

LARGEST_SCORES, MOST_SCORES = 1 << 16, 1 << 22
"""Queries times keys of a row, and of a batch, up to which a layer's are held at once; more go to a fused kernel."""

_ROWS = 128
"""Rows whose logits are held at a time where a loss is all that is wanted of them."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the T positions of a batch that are computed stand among its B x L: no padding, shared openings once.

    Shapes:
        flat: (T,) long, row * L + column; source: (B * L,) long, place in T, 0 at padding; both None if T = B * L
        shared: (X,) long, row * L + column of the positions that another row computes, or None without any
        used: (B, L) bool, what is no padding
        mask: (B * G, L * g, S), added to the scores, g query heads to a key head
        cos, sin: (T, H + G, d), rotation of queries and keys
    """

    rows: int
    length: int
    flat: Tensor | None
    source: Tensor | None
    shared: Tensor | None
    used: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor

    def spread(self, packed: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), anything finite at padding."""
        full = packed if self.source is None else packed.index_select(0, self.source)
        return full.view(self.rows, self.length, *packed.shape[1:])

    @property
    def keeps_shares(self) -> bool:
        """Whether the backward pass finds the attention's shares as the forward pass left them."""
        return self.length * self.mask.shape[-1] <= KEPT_SCORES

    def whole(self, packed: Tensor) -> Tensor:
        """(T, D) to (B, L, D), zero at padding."""
        if self.shared is None:
            return self.spread_zero(packed)
        return self.spread(packed).masked_fill(~self.used[..., None], 0)

    def chosen(self, at: Tensor) -> Tensor:
        """The places in T of positions (B, L) bool, none of them padding, row by row."""
        found = at.flatten().nonzero()[:, 0]
        return found if self.source is None else self.source[found]

    def collect(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...), where a shared position gets the sum: what `spread` is to gradients."""
        packed = self.pack(padded)
        if self.shared is None or self.source is None:
            return packed
        others = padded.flatten(0, 1).index_select(0, self.shared).float()
        return packed.float().index_add_(0, self.source[self.shared], others).to(packed.dtype)

    def spread_zero(self, packed: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), zero at padding and where another row computes."""
        if self.flat is not None:
            size = self.rows * self.length
            packed = packed.new_zeros(size, *packed.shape[1:]).index_copy(0, self.flat, packed)
        return packed.view(self.rows, self.length, *packed.shape[1:])

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...)."""
        padded = padded.reshape(self.rows * self.length, *padded.shape[2:])
        return padded if self.flat is None else padded.index_select(0, self.flat)


def is_short(inputs: LMInputs) -> bool:
    """Whether the attention is small enough for plain products."""
    past = 0 if inputs.prefix is None else inputs.prefix.mask.shape[1]
    rows, length = inputs.mask.shape
    scores = length * (past + length)
    return scores <= LARGEST_SCORES and rows * scores <= MOST_SCORES and bool(inputs.mask.any())


def run(
    weights: FrozenLlama,
    inputs: LMInputs,
    at: Tensor | None,
    wanted: tuple[Sequence[int], int],
    blocks: Mapping[int, nn.Module],
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """All of a batch without a cache; `blocks` read its memory, if it has one, before the layers of their number.

    Shapes:
        at: (B, L) bool or None, as in `LanguageModel.forward`; wanted: of `wanted_layers`
        returns: logits (P, V), or (B, L, V) without `at`; hidden (B, L, D) and the wanted layers, zero at padding
    """
    places = _places(weights, inputs)
    numbers, depth = wanted
    held = _states(weights, inputs, places, {depth, *numbers}, blocks)
    spread = {number: places.whole(held[number]) for number in {depth, *numbers}}
    logits = _logits(weights, places, at, held[depth], spread[depth])
    return logits, spread[depth], tuple(spread[number] for number in numbers)


def target_loss(
    weights: FrozenLlama,
    inputs: LMInputs,
    at: Tensor,
    targets: Tensor,
    blocks: Mapping[int, nn.Module],
    extra: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """As `LanguageModel.target_loss`: `at` holds no padding; 0 where P is 0."""
    depth = len(weights.layers)
    places = _places(weights, inputs)
    states = _states(weights, inputs, places, {depth}, blocks)[depth]  # (T, D)
    chosen = states.index_select(0, places.chosen(at))  # (P, D)
    more = None if extra is None else extra(chosen)  # (P, E)
    if not len(targets):
        return chosen.sum() * 0.0
    loss: Tensor = _HeadLoss.apply(weights, chosen, more, targets)  # type: ignore[no-untyped-call]
    return loss


def _states(
    weights: FrozenLlama, inputs: LMInputs, places: _Places, wanted: set[int], blocks: Mapping[int, nn.Module]
) -> dict[int, Tensor]:
    """Hidden states (T, D) by layer, of the wanted ones among others; nothing above the deepest is computed."""
    if torch.is_grad_enabled():
        weights.lay_out(gradients=True)
    states = places.pack(inputs.embeds.to(weights.norm.dtype))  # (T, D)
    reading = {} if inputs.memory is None else blocks
    depth, held = max(wanted), {}
    ends = {0, *wanted, *(index for index in reading if index < depth)}
    for start, stop in pairwise(sorted(ends)):
        held[start] = states
        if start in reading:
            read = reading[start](places.spread(states), inputs.memory)  # (B, L, D)
            states = places.pack(read.to(states.dtype))
        keys, values = (None, None) if inputs.prefix is None else (inputs.prefix.keys, inputs.prefix.values)
        if keys is not None and values is not None and (start, stop) != (0, len(keys)):
            keys, values = keys[start:stop], values[start:stop]
        states = _Stack.apply(weights, range(start, stop), places, states, keys, values)  # type: ignore[no-untyped-call]
    held[depth] = states
    return held


def _logits(weights: FrozenLlama, places: _Places, at: Tensor | None, states: Tensor, hidden: Tensor) -> Tensor:
    """Logits at the wanted positions of hidden (B, L, D), which as (T, D) are `states`."""
    if at is None:
        logits: Tensor = _Head.apply(weights, hidden.flatten(0, 1))  # type: ignore[no-untyped-call]
        return logits.view(*hidden.shape[:2], -1)
    if bool((at & ~places.used).any()):  # logits of padding
        chosen = hidden[at]
    else:
        wanted = places.chosen(at)  # (P,)
        takes_all = places.shared is None and len(wanted) == len(states)
        chosen = states if takes_all else states.index_select(0, wanted)
    logits = _Head.apply(weights, chosen)  # type: ignore[no-untyped-call]
    return logits


def _places(weights: FrozenLlama, inputs: LMInputs) -> _Places:
    mask, prefix = inputs.mask, inputs.prefix
    rows, length = mask.shape
    usable = mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)  # (B, S)
    past = usable.shape[1] - length
    owners = _owners(inputs)
    own = mask if owners is None else mask & (owners == torch.arange(rows)[:, None])  # (B, L), T of them
    flat = source = shared = None
    if not bool(own.all()):
        flat = own.flatten().nonzero()[:, 0]  # (T,)
        source = torch.zeros(rows * length, dtype=torch.long)
        source[flat] = torch.arange(len(flat))
    if owners is not None and source is not None:
        shared = (mask & ~own).flatten().nonzero()[:, 0]  # (X,)
        source[shared] = source[owners.flatten()[shared] * length + shared % length]
    cos, sin = weights.rotation(position_ids(usable, length)[own])  # (T, d)
    turned = weights.heads + weights.groups
    cos, sin = (angle[:, None].expand(-1, turned, -1).contiguous() for angle in (cos, sin))
    seen = usable[:, None].expand(-1, length, -1).tril(past)  # (B, L, S)
    added = torch.zeros(seen.shape, dtype=cos.dtype).masked_fill_(~seen, torch.finfo(cos.dtype).min)
    each = weights.heads // weights.groups
    added = added[:, None, :, None].expand(-1, weights.groups, -1, each, -1)  # (B, G, L, g, S)
    added = added.reshape(rows * weights.groups, -1, usable.shape[1])
    return _Places(rows, length, flat, source, shared, mask, added, cos, sin)


def _owners(inputs: LMInputs) -> Tensor | None:
    """The rows that compute the positions, (B, L) long; None where every row computes its own."""
    owners, mask = inputs.owners, inputs.mask
    if owners is None or inputs.memory is not None:
        return None
    rows, length = mask.shape
    own = torch.arange(rows)[:, None]
    there = mask & mask[owners, torch.arange(length)]  # an owner may have been cut before this position
    owners = torch.where(there, owners, own)
    return owners if bool((owners != own).any()) else None


class _Head(torch.autograd.Function):
    """The output matrix."""

    @staticmethod
    def forward(ctx: Any, weights: FrozenLlama, states: Tensor) -> Tensor:
        ctx.weights = weights
        return weights.output(states)

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.weights.output.gradient(grads)


class _HeadLoss(torch.autograd.Function):
    """The output matrix and the mean cross-entropy behind it, with its gradient, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, weights: FrozenLlama, states: Tensor, more: Tensor | None, targets: Tensor) -> Tensor:
        grads = torch.empty_like(states) if ctx.needs_input_grad[1] else None
        more_grads = None if more is None else torch.empty_like(more)
        total, factor = torch.zeros((), dtype=torch.float32), 1 / len(targets)
        for start in range(0, len(targets), _ROWS):
            span = slice(start, start + _ROWS)
            logits = weights.output(states[span])  # (R, V)
            own = None if grads is None else logits  # which hold their own gradient then
            extra = None if more is None or more_grads is None else (more[span], more_grads[span])
            total += summed_cross_entropy(logits, targets[span], own, factor, extra)
            if grads is not None:
                grads[span] = weights.output.gradient(logits)
        ctx.save_for_backward(grads, more_grads)
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        states, more = (None if one is None else scaled_gradient(one, grad) for one in ctx.saved_tensors)
        return None, states, more, None


class _Stack(torch.autograd.Function):
    """Layers in a row, and the last norm where they are the last: states (T, D).

    The prefix's keys and values are of these layers alone, (layers, B, G, P, d), or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: FrozenLlama,
        span: range,
        places: _Places,
        states: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
    ) -> Tensor:
        ctx.layers, ctx.places = [weights.layers[index] for index in span], places
        ctx.weights, ctx.closes = weights, span.stop == len(weights.layers)
        ctx.prefix = None if keys is None else (keys.shape, keys.dtype)
        keeps = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for index, layer in enumerate(ctx.layers):
            prefix = None if keys is None or values is None else (keys[index], values[index])
            states, held = _layer(weights, places, layer, states, prefix)
            if keeps:
                kept += held
        if ctx.closes:
            result, scale = weights.normalise(states, weights.norm)
            kept = [*kept, states, scale] if keeps else kept
        else:
            result = states
        ctx.save_for_backward(*kept)
        return result

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise UnsupportedLMError("no second derivative of a frozen decoder is there; call lm.requires_grad_(True)")
        weights, places, kept = ctx.weights, ctx.places, ctx.saved_tensors
        wants_states, wants_prefix = ctx.needs_input_grad[3], any(ctx.needs_input_grad[4:])
        if ctx.closes:
            stream = torch.zeros(grads.shape, dtype=torch.float32)
            _add_norm_gradient(stream, grads, kept[-2], kept[-1], weights.norm)
        else:
            stream = grads.to(torch.float32, copy=True)
        found: list[Tensor | None] = [None, None]
        if wants_prefix:
            shape, dtype = ctx.prefix
            found = [torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)]
        for index in reversed(range(len(ctx.layers))):
            layer, held = ctx.layers[index], kept[index * _KEPT : (index + 1) * _KEPT]
            stops = index == 0 and not wants_states
            prefix = _layer_gradient(weights, places, layer, held, stream, stops=stops)
            if wants_prefix:
                for total, grad in zip(found, prefix, strict=True):
                    assert total is not None
                    total[index] = grad[:, :, : total.shape[3]]
        return None, None, None, stream.to(grads.dtype) if wants_states else None, *found


def _layer(
    weights: FrozenLlama,
    places: _Places,
    layer: FrozenLayer,
    states: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, list[Tensor]]:
    """States (T, D) after one layer, and what its backward pass needs."""
    normed, scale = weights.normalise(states, layer.norm)
    query, key, value = _attended(weights, places, layer.qkv(normed), prefix)
    shares = _shares(places, query, key)
    read = torch.bmm(shares.to(value.dtype), value).view(places.rows, weights.groups, places.length, -1)
    read = places.pack(read.transpose(1, 2))  # (T, G, g * d)
    middle = layer.out(read.reshape(len(states), -1)).add_(states)
    normed, middle_scale = weights.normalise(middle, layer.mlp_norm)
    both = layer.gate_up(normed)  # (T, 2I)
    gate, up = both.chunk(2, dim=-1)
    after = layer.down(F.silu(gate).mul_(up)).add_(middle)
    shares = shares if places.keeps_shares else shares.new_empty(0)
    return after, [states, scale, query, key, value, shares, middle, middle_scale, both]


def _shares(places: _Places, query: Tensor, key: Tensor) -> Tensor:
    """How much every query reads of every key: (B * G, L * g, S) float32."""
    scores = torch.bmm(query, key.mT).add_(places.mask)
    return scores.softmax(dim=-1, dtype=torch.float32)


def _attended(
    weights: FrozenLlama, places: _Places, mixed: Tensor, prefix: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B * G, L * g, d), scaled, and keys and values (B * G, S, d), the prefix in front."""
    heads, groups, width, rows = weights.heads, weights.groups, weights.width, places.rows
    mixed = mixed.view(len(mixed), -1, width)  # (T, H + 2G, d)
    turning = mixed[:, : heads + groups]
    swapped = turning.roll(width // 2, -1).mul_(places.sin)
    turned = places.spread((turning * places.cos).add_(swapped))  # (B, L, H + G, d)
    query = mixed.new_empty(rows, groups, places.length, heads // groups, width)
    torch.mul(_grouped(turned[:, :, :heads], groups).transpose(1, 2), weights.scaling, out=query)
    both = []
    fresh = (turned[:, :, heads:], places.spread(mixed[:, heads + groups :]))  # (B, L, G, d) each
    for index, new in enumerate(fresh):
        past = 0 if prefix is None else prefix[index].shape[2]
        joined = new.new_empty(rows, groups, past + places.length, width)
        if prefix is not None:
            joined[:, :, :past] = prefix[index]
        joined[:, :, past:] = new.transpose(1, 2)
        both.append(joined.flatten(0, 1))
    return query.view(rows * groups, -1, width), both[0], both[1]


def _layer_gradient(
    weights: FrozenLlama, places: _Places, layer: FrozenLayer, held: Sequence[Tensor], stream: Tensor, *, stops: bool
) -> tuple[Tensor, Tensor]:
    """Turns the gradient `stream` (T, D) of a layer's result, in place, into that of its input.

    Returns the gradients of all keys and values, (B, G, S, d) each; `stops`: nothing else is wanted.
    """
    states, scale, query, key, value, shares, middle, middle_scale, both = held
    shares = shares if places.keeps_shares else _shares(places, query, key)
    _add_mlp_gradient(layer, stream, middle, middle_scale, both)
    grads = places.spread_zero(layer.out.gradient(stream.to(states.dtype)))  # (B, L, H * d)
    grads = _grouped(grads, weights.groups).transpose(1, 2).reshape(query.shape)
    value_grads = torch.bmm(shares.to(value.dtype).mT, grads)  # (B * G, S, d)
    share_grads = torch.bmm(grads, value.mT).float()
    score_grads = torch.ops.aten._softmax_backward_data(share_grads, shares, -1, torch.float32).to(query.dtype)
    key_grads = torch.bmm(score_grads.mT, query)
    split = (places.rows, weights.groups, -1, weights.width)
    if not stops:
        query_grads = torch.bmm(score_grads, key)
        mixed = _mixed_gradient(weights, places, query_grads, key_grads.view(split), value_grads.view(split))
        _add_norm_gradient(stream, layer.qkv.gradient(mixed), states, scale, layer.norm)
    return key_grads.view(split), value_grads.view(split)


def _grouped(states: Tensor, groups: int) -> Tensor:
    """(B, L, G * n, ...) to (B, L, G, n, ...)."""
    return states.view(*states.shape[:2], groups, -1, *states.shape[3:])


def _mixed_gradient(weights: FrozenLlama, places: _Places, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Gradient of the joined map's output, (T, (H + 2G) * d), with the rotation undone."""
    heads, groups, width, length = weights.heads, weights.groups, weights.width, places.length
    mixed = query.new_empty(places.rows, length, heads + 2 * groups, width)
    grouped = query.view(places.rows, groups, length, -1, width).transpose(1, 2)  # (B, L, G, g, d)
    torch.mul(grouped, weights.scaling, out=_grouped(mixed[:, :, :heads], groups))
    mixed[:, :, heads : heads + groups] = key[:, :, -length:].transpose(1, 2)
    mixed[:, :, heads + groups :] = value[:, :, -length:].transpose(1, 2)
    mixed = places.collect(mixed)  # (T, H + 2G, d)
    turned = mixed[:, : heads + groups]
    swapped = (turned * places.sin).roll(width // 2, -1)
    turned.mul_(places.cos).add_(swapped)
    return mixed.flatten(1)


def _add_mlp_gradient(layer: FrozenLayer, stream: Tensor, middle: Tensor, scale: Tensor, both: Tensor) -> None:
    grads = layer.down.gradient(stream.to(middle.dtype))  # (T, I)
    gate, up = both.chunk(2, dim=-1)
    result = torch.empty_like(both)
    gate_grads, up_grads = result.chunk(2, dim=-1)
    torch.mul(grads, F.silu(gate), out=up_grads)
    torch.ops.aten.silu_backward.grad_input(grads.mul_(up), gate, grad_input=gate_grads)
    _add_norm_gradient(stream, layer.gate_up.gradient(result), middle, scale, layer.mlp_norm)


def _add_norm_gradient(stream: Tensor, grads: Tensor, states: Tensor, scale: Tensor, weight: Tensor) -> None:
    """Adds the gradient of an RMS norm's input (T, D), float32, to `stream`."""
    wide = grads.to(torch.float32, copy=True).mul_(weight.float())
    direction = states.to(torch.float32, copy=True).mul_(scale)
    along = torch.linalg.vecdot(wide, direction)[:, None].mul_(scale / states.shape[1])
    stream.addcmul_(wide, scale).addcmul_(direction, along, value=-1)
