"""Cross-attention for decoder layers that do not know of it.

The memory travels as a keyword argument of the call, so threads cannot mix theirs up; a hook before each layer takes
it off and, on the chosen layers, lets the system's block work on the hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from graftlm.lm.base import Memory

KEYWORD = "graft_memory"


class Probe:
    """Given in a memory's place, it notes which layers' hooks were reached."""

    def __init__(self) -> None:
        self.reached: set[int] = set()


class MemoryHooks:
    """The hooks of one decoder, and the blocks they apply. Blocks stay in their owner's module tree."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.blocks: dict[int, nn.Module] = {}
        self.num_layers = len(layers)
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True)

    def set_blocks(self, blocks: Mapping[int, nn.Module]) -> None:
        """Replaces the blocks; keys are layer numbers."""
        self.blocks = dict(blocks)

    def _before(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if KEYWORD not in kwargs:
            return None
        rest = {name: value for name, value in kwargs.items() if name != KEYWORD}
        memory: Memory | Probe = kwargs[KEYWORD]
        if isinstance(memory, Probe):
            memory.reached.add(index)
            return args, rest
        if index not in self.blocks:
            return args, rest
        if args:
            return (self._apply(index, args[0], memory), *args[1:]), rest
        return args, {**rest, "hidden_states": self._apply(index, rest["hidden_states"], memory)}

    def _apply(self, index: int, hidden: Tensor, memory: Memory) -> Tensor:
        changed: Tensor = self.blocks[index](hidden, memory)
        return changed.to(hidden.dtype)


def is_memory_hook(hook: object) -> bool:
    """Whether a hook is one of `MemoryHooks`, which leaves calls without memory as they are."""
    return isinstance(hook, partial) and isinstance(getattr(hook.func, "__self__", None), MemoryHooks)
