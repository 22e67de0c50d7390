"""Keys and values of the past, as every decoder here keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ShapeError
from graftlm.lm.base import KVPrefix, LMInputs
from graftlm.lm.packed_llama import PackedLlama


class KVCache:
    """Keys and values of the past, written in place: one tensor per layer, no concatenation per step.

    It holds every position, also where a layer looks back through a sliding window: the mask does the sliding.
    Rows that were selected are moved layer by layer when a layer is next used: within the tensor where nobody reads the
    old rows any more, else into a copy.

    Shapes:
        store: of each layer (2, rows, kv_heads, capacity, head_dim); mask: (rows, capacity) bool
    """

    def __init__(
        self,
        store: Tensor | Sequence[Tensor],
        mask: Tensor,
        length: int = 0,
        *,
        packed: PackedLlama | None = None,
        rows: Sequence[Tensor | None] = (),
        is_shared: bool = False,
    ) -> None:
        self._whole = store if isinstance(store, Tensor) and not rows else None
        self._store: list[Tensor] = list(store)
        self._rows = list(rows) or [None] * len(self._store)  # still to be selected, by layer
        self._is_shared = is_shared  # another cache reads the same tensors
        self.mask = mask
        self.length = length
        self.packed = packed

    @classmethod
    def empty(
        cls, shapes: Sequence[tuple[int, int]], rows: int, length: int, *, packed: PackedLlama | None, **like: Any
    ) -> KVCache:
        """Room for `length` positions of `rows` rows.

        Args:
            shapes: heads and their width, by layer; like: dtype and device
        """
        sizes = [(2, rows, heads, length, width) for heads, width in shapes]
        is_even = len(set(sizes)) == 1
        whole = (
            torch.empty(len(sizes), *sizes[0], **like) if is_even else [torch.empty(*size, **like) for size in sizes]
        )
        return cls(whole, torch.zeros(rows, length, dtype=torch.bool, device=like["device"]), packed=packed)

    def held(self) -> Tensor:
        """What is in use, (layers, 2, rows, kv_heads, length, head_dim): a view where all layers are one tensor."""
        whole = self._whole
        if whole is None:
            whole = torch.stack([self.layer(index) for index in range(len(self._store))])
        return whole[..., : self.length, :]

    def layer(self, index: int) -> Tensor:
        """Keys and values of one layer, (2, rows, kv_heads, capacity, head_dim)."""
        rows = self._rows[index]
        if rows is not None:
            kept, chosen = self._store[index], self._store[index].index_select(1, rows)
            if not self._is_shared and len(rows) <= kept.shape[1]:
                chosen = kept.narrow(1, 0, len(rows)).copy_(chosen)
            self._store[index], self._rows[index] = chosen, None
        return self._store[index]

    def write_prefix(self, prefix: KVPrefix) -> None:
        """Puts a prefix in front; the cache is empty."""
        size = prefix.mask.shape[1]
        for layer in range(len(self._store)):
            kept = self.layer(layer)
            kept[0, :, :, :size] = prefix.keys[layer]
            kept[1, :, :, :size] = prefix.values[layer]
        self.mask[:, :size] = prefix.mask
        self.length = size

    def select(self, rows: Tensor, *, drop: bool) -> KVCache:
        """One that holds the given rows; `drop`: this one is not used any more."""
        self._is_shared |= not drop
        pending = [rows if before is None else before[rows] for before in self._rows]
        shared = self._is_shared
        mask = self.mask[rows]
        return KVCache(self._store, mask, self.length, packed=self.packed, rows=pending, is_shared=shared)

    def as_prefix(self) -> KVPrefix:
        """What it holds, for other rows to continue."""
        held = self.held()  # (layers, 2, B, heads, P, head_dim)
        return KVPrefix(held[:, 0], held[:, 1], self.mask[:, : self.length])


def begin(cache: KVCache, inputs: LMInputs) -> int:
    """Makes a cache ready for new positions: writes a prefix and their mask; returns the positions in use then.

    Raises: ShapeError when they do not fit.
    """
    if inputs.prefix is not None:
        cache.write_prefix(inputs.prefix)
    end = cache.length + inputs.mask.shape[1]
    if cache.mask.shape[0] != len(inputs) or end > cache.mask.shape[1]:
        raise ShapeError(
            f"a cache for {cache.mask.shape[0]} rows of {cache.mask.shape[1]} positions, {cache.length} in "
            f"use, was given {len(inputs)} rows of {inputs.mask.shape[1]} more; ask new_cache for more"
        )
    cache.mask[:, cache.length : end] = inputs.mask
    return end
