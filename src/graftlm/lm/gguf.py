"""Reading a GGUF file once."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any


@contextmanager
def read_once() -> Iterator[None]:
    """transformers parses a GGUF file three times and builds its table of names once per module: 20 s of 27.

    Its bar goes to stderr whatever its settings, so stderr is held back meanwhile.
    """
    import gguf as gguf_package

    gguf: Any = gguf_package
    names = ("GGUFReader", "get_tensor_name_map")
    kept = {name: getattr(gguf, name) for name in names}
    try:
        for name, function in kept.items():
            setattr(gguf, name, functools.cache(function))
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)
