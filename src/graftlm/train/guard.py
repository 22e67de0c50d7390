"""Frozen means provably frozen: a hash of every tensor that is not trained, and of the module tree."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graftlm.errors import FrozenError
from graftlm.systems.base import System

_AT_ONCE = 32
"""Tensors hashed before memory is given back."""


@dataclass(slots=True)
class FrozenGuard:
    """Remembers a system's frozen tensors and module tree, and says when they differ.

    Attributes:
        digests: SHA-256 by tensor name; tree: class by module name
        checks: how often `check` found nothing; seconds: time spent hashing
    """

    digests: dict[str, str]
    tree: dict[str, str]
    checks: int = 0
    seconds: float = field(default=0.0)

    @classmethod
    def of(cls, system: System) -> FrozenGuard:
        """The state to hold on to."""
        start = time.perf_counter()
        return cls(frozen_digests(system), module_tree(system), seconds=time.perf_counter() - start)

    @property
    def fingerprint(self) -> str:
        """One digest of everything frozen."""
        lines = [f"{name} {digest}\n" for name, digest in sorted(self.digests.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check(self, system: System) -> None:
        """Raises: FrozenError naming the first tensor or module that changed, came or went."""
        start = time.perf_counter()
        _compare(self.tree, module_tree(system), "module")
        _compare(self.digests, frozen_digests(system), "tensor")
        self.checks += 1
        self.seconds += time.perf_counter() - start


def frozen_digests(system: System) -> dict[str, str]:
    """SHA-256 of type, shape and bytes of every tensor that is not trained, buffers included.

    A trained tensor may have a second name (tied input and output vectors): what counts is the tensor.
    """
    trained = {id(parameter) for _, parameter in system.trainable()}
    tensors = system.state_dict(keep_vars=True)
    frozen = {name: tensor for name, tensor in tensors.items() if id(tensor) not in trained}
    digests: dict[str, str] = {}
    names = list(frozen)
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashlib lets other threads run
        for start in range(0, len(names), _AT_ONCE):
            cut = names[start : start + _AT_ONCE]
            digests.update(zip(cut, pool.map(_digest, [frozen[name] for name in cut]), strict=True))
            if system.has_lm:
                system.lm.spare_memory()  # what has just been read need not stay
    return digests


def module_tree(system: System) -> dict[str, str]:
    """Class of every module by name."""
    return {name: type(module).__qualname__ for name, module in system.named_modules()}


def _digest(value: object) -> str:
    if not isinstance(value, Tensor):  # packed weights of a quantised layer
        return hashlib.sha256(repr(value).encode()).hexdigest()
    tensor = value.detach().contiguous().cpu()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compare(before: Mapping[str, str], now: Mapping[str, str], kind: str) -> None:
    for name in sorted({*before, *now}):
        if name not in now:
            raise FrozenError(f"frozen {kind} '{name}' is gone since the run began; a frozen part must not be rebuilt")
        if name not in before:
            raise FrozenError(f"frozen {kind} '{name}' appeared since the run began; add parts before training")
        if before[name] != now[name]:
            raise FrozenError(
                f"frozen {kind} '{name}' has changed since the run began (expected {before[name][:12]}, found "
                f"{now[name][:12]}); nothing outside trainable_state may be written to"
            )
