"""What every language model checks of its inputs, and where a position stands."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from graftlm.errors import ShapeError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, PrefixGeometry


def position_ids(mask: Tensor, new: int) -> Tensor:
    """Positions of the last `new` places, counted over what may be used, never over the padded index.

    Shapes:
        mask: (B, P + past + L) bool, prefix and past included; returns: (B, L) long, 0 at leading padding
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, mask.shape[1] - new :]


def check_inputs(lm: LanguageModel, inputs: LMInputs, *, past: int, has_blocks: bool) -> None:
    """Raises: ShapeError when widths, rows or lengths do not fit `lm` or each other, or memory would go unread.

    `past` counts cached places; `has_blocks` says whether cross-attention is attached.
    """
    rows, length, width = inputs.embeds.shape
    if width != lm.dim:
        raise ShapeError(f"embeddings of width {width} given to a language model of width {lm.dim}")
    if inputs.mask.shape != (rows, length):
        raise ShapeError(f"expected a mask of shape ({rows}, {length}), found {tuple(inputs.mask.shape)}")
    before = past
    if inputs.prefix is not None:
        if past:
            raise ShapeError(f"a prefix was given with a cache that already holds {past} positions; give it first")
        _check_prefix(inputs.prefix, rows, lm.prefix_geometry)
        before = inputs.prefix.mask.shape[1]
    if inputs.memory is not None and not has_blocks:
        raise ShapeError("memory was given to a language model without cross-attention; attach its blocks first")
    if inputs.memory is not None and inputs.memory.mask.shape[:2] != (rows, length):
        found = tuple(inputs.memory.mask.shape)
        raise ShapeError(f"expected a memory mask of shape ({rows}, {length}, M), found {found}")
    if before + length > lm.context_length:
        raise ShapeError(
            f"{before + length} positions given to a language model made for {lm.context_length}; "
            "shorten the text or the prefix"
        )


def wanted_layers(layers: Sequence[int], count: int, at: Tensor | None) -> tuple[tuple[int, ...], int]:
    """The numbers, from 0 to `count`, of the hidden states that are wanted, and of the deepest that is needed.

    Raises: ShapeError when there is no such layer.
    """
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise ShapeError(f"hidden states of layer {layer} are wanted of a language model of {count} layers")
    numbers = tuple(layer % (count + 1) for layer in layers)
    ends_early = bool(numbers) and at is not None and not bool(at.any())
    return numbers, max(numbers) if ends_early else count


def _check_prefix(prefix: KVPrefix, rows: int, geometry: PrefixGeometry) -> None:
    wanted = (geometry.num_layers, rows, geometry.num_kv_heads, prefix.mask.shape[1], geometry.head_dim)
    for name, tensor in (("keys", prefix.keys), ("values", prefix.values)):
        if tuple(tensor.shape) != wanted:
            raise ShapeError(f"expected prefix {name} of shape {wanted}, found {tuple(tensor.shape)}")
