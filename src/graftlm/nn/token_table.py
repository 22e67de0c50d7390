"""A vector for every token, of which only those that training can reach are held (IPT §3, arXiv:2206.01958).

The table of a whole vocabulary is larger than everything else a prompt method trains, yet a step moves only the rows of
the tokens in its batch. So the rows of tokens that training knows are parameters, and all other rows are what the table
began as, which is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Start = Callable[[Tensor], Tensor]
"""What a table begins as: ids (R,) long to rows (R, W) float32, always the same ones."""

StartName = Literal["uniform", "words", "zeros"]

BY_ROW = "moves_by_row"
"""Marks a parameter of which the optimiser moves only rows with a gradient; see train/optim.py."""


class TokenTable(nn.Module):
    """Rows (W,) of tokens; those of `keep` are trained, the others stay at `start`.

    Attributes:
        rows: (R, W) float32; ids: (R,) long, ascending, the tokens they belong to
        reached: how many of them training moves, where its data are known
    """

    ids: Tensor

    def __init__(self, vocab_size: int, width: int, start: Start) -> None:
        super().__init__()
        self.vocab_size, self.width = vocab_size, width
        self._start = start
        self.reached: int | None = None
        self.rows = nn.Parameter(torch.zeros(0, width))
        setattr(self.rows, BY_ROW, True)
        # It is written where the trained rows are, and is no frozen part: not in the state dict.
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long), persistent=False)

    @property
    def stored(self) -> int:
        """Numbers of the table of the whole vocabulary."""
        return self.vocab_size * self.width

    @property
    def touched(self) -> int:
        """Numbers that training moves."""
        rows = len(self.ids) if self.reached is None else self.reached
        return rows * self.width if self.rows.requires_grad else 0

    @torch.no_grad()
    def keep(self, ids: Tensor) -> None:
        """Gives tokens rows of their own, where they have none; to be called before there is an optimiser."""
        new = torch.unique(ids)
        new = new[~torch.isin(new, self.ids)]
        joined, order = torch.cat([self.ids, new]).sort()
        self.rows.data = torch.cat([self.rows, self._begin(new)])[order]
        self.ids = joined

    @torch.no_grad()
    def replace(self, ids: Tensor, rows: Tensor) -> None:
        """Gives tokens (R,) the rows (R, W) of another table, and makes them its own."""
        self.keep(ids)
        self.rows.data[torch.searchsorted(self.ids, ids)] = rows.to(self.rows)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """What is written of it, by name."""
        return {f"{prefix}ids": self.ids, f"{prefix}rows": self.rows.detach()}

    @torch.no_grad()
    def resize(self, rows: Tensor | None) -> None:
        """Room for rows (R, W) that are then copied in together with `ids`; for none where None is given."""
        count = 0 if rows is None else len(rows)
        self.rows.data = self.rows.new_zeros(count, self.width)
        self.ids = self.ids.new_zeros(count)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., W) float32 of ids (...) long."""
        if not len(self.ids):
            return self._begin(ids.flatten()).view(*ids.shape, self.width)
        ids = ids.contiguous()  # torch.searchsorted would copy them, and say so
        slots = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        found = nn.functional.embedding(slots, self.rows)  # (..., W)
        missing = self.ids[slots] != ids
        if not bool(missing.any()):
            return found
        return found.masked_scatter(missing[..., None], self._begin(ids[missing]))

    def _begin(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            once, places = torch.unique(ids, return_inverse=True)
            return self._start(once).to(self.rows)[places]


class UniformStart:
    """Rows drawn from U(-scale, scale), a function of the seed: IPT's random table (released code: 0.5).

    The table of the whole vocabulary is drawn when a row is first asked for.
    """

    def __init__(self, vocab_size: int, width: int, *, seed: int = 0, scale: float = 0.5) -> None:
        self._shape, self._seed, self._scale = (vocab_size, width), seed, scale
        self._drawn: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """(R,) long to (R, W)."""
        if self._drawn is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._drawn = (torch.rand(self._shape, generator=generator) * 2 - 1) * self._scale
        return self._drawn[ids.cpu()]


class ZeroStart:
    """Rows of zeros: a token that training never saw adds nothing."""

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, ids: Tensor) -> Tensor:
        """(R,) long to (R, W)."""
        return torch.zeros(len(ids), self._width)


def table_start(name: StartName, vocab_size: int, width: int, embed: Callable[[Tensor], Tensor]) -> Start:
    """The start of a name; `embed`: a language model's input vectors, (1, R) long to (1, R, W)."""
    if name == "zeros":
        return ZeroStart(width)
    if name == "uniform":
        return UniformStart(vocab_size, width)
    return lambda ids: embed(ids[None])[0]
