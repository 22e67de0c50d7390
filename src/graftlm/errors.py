"""Every error GraftLM raises on purpose, as one tree.

::

    GraftError                    anything a user can act on; the CLI prints the message alone and exits 1
    ├── UsageError                the command itself was wrong; exits 2
    ├── ConfigError               a recipe or a config: unknown key, wrong type, value out of range
    ├── DataError                 a file, row, image or table that cannot be used
    │   └── BadSampleError        one bad row; goes to the ledger unless the budget is spent
    ├── BackboneError             a frozen model that cannot be found, read or used
    │   └── UnsupportedLMError    a language model whose layers do not take what a system needs
    ├── CheckpointError           a checkpoint or graft that is broken, hostile or belongs to other parts
    ├── FrozenError               a part that was promised frozen has changed
    ├── ShapeError                counts or widths that do not fit together, with both numbers
    └── MissingExtraError         an optional dependency is absent; the message holds the install command

A message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraftError(Exception):
    """Anything a user can act on."""

    exit_code = 1


class UsageError(GraftError):
    """The command itself was wrong."""

    exit_code = 2


class ConfigError(GraftError):
    """A recipe or a config that cannot be used."""


class DataError(GraftError):
    """A file, row, image or table that cannot be used."""


class BadSampleError(DataError):
    """One bad row. `reason` is a short kebab-case key, the message the whole sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BackboneError(GraftError):
    """A frozen model that cannot be found, read or used."""


class UnsupportedLMError(BackboneError):
    """A language model whose decoder layers do not take what a system needs."""


class CheckpointError(GraftError):
    """A checkpoint or graft that is broken, hostile or belongs to other parts."""


class FrozenError(GraftError):
    """A part that was promised frozen has changed."""


class ShapeError(GraftError):
    """Counts or widths that do not fit together."""


class MissingExtraError(GraftError):
    """An optional dependency is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'; run: pip install 'graftlm[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is none of those `known`, with the nearest of them."""
    there = list(known)
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'{hint} (there are: {', '.join(there) or 'none'})"
