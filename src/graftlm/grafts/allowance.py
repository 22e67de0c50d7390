"""What a graft's config may ask for: no more memory than its own tensors need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graftlm.errors import CheckpointError, ConfigError, GraftError

_FACTOR, _SLACK = 4, 1 << 24
"""A little more is free: a config that is slightly wrong is better told by the first tensor that does not fit."""
_FACTORIES = ("empty", "zeros", "ones", "full", "rand", "arange", "eye", "linspace", "new_")
_BROKEN = (RuntimeError, ValueError, TypeError, OverflowError, MemoryError, RecursionError, ZeroDivisionError)


@contextmanager
def allowing(tensors: Mapping[str, Tensor], where: Path) -> Iterator[None]:
    """Building a system inside takes no more memory than `tensors`, which it is to be filled with, can explain.

    Raises: CheckpointError before the memory is taken, or when the config cannot be built at all.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        with _Allowance(_FACTOR * held + _SLACK):
            yield
    except ConfigError as error:
        raise CheckpointError(f"{where}: its config cannot be built: {error}") from None
    except GraftError:
        raise
    except _TooMuchError as error:
        raise CheckpointError(
            f"{where}: its config asks for {error.asked:,} numbers or more, its tensors hold {held:,}; it is broken or "
            "hostile: fetch the graft again"
        ) from None
    except _BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{where}: its config cannot be built ({reason}); fetch the graft again") from None


class _TooMuchError(Exception):
    def __init__(self, asked: int) -> None:
        super().__init__(asked)
        self.asked = asked


class _Allowance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers of new tensors before they are made."""

    def __init__(self, numbers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = numbers
        self._asked = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and torch would import its compiler, for more than a second, to skip it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name.removeprefix("aten::").startswith(_FACTORIES):
            self._asked += max((_numbers(value) for value in (*args, *(kwargs or {}).values())), default=0)
            if self._asked > self._limit:
                raise _TooMuchError(self._asked)
        return func(*args, **(kwargs or {}))


def _numbers(value: Any) -> int:
    """How many numbers a size stands for; 0 for what is no size."""
    if isinstance(value, list | tuple) and all(isinstance(side, int) for side in value):
        return math.prod(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
