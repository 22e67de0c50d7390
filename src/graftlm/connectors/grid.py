"""A map of the pooled vector and of a coarse grid: one token for the whole picture, one for each cell.

The map ClipCap's papers leave out: they see one vector per picture. A low-rank bottleneck keeps it small even where a
token is as wide as the keys and values of a whole language model (prefix tuning, arXiv:2101.00190 §4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features
from graftlm.errors import ConfigError

_SMALL = 0.005


class GridMap(Connector):
    """pooled and side x side cells (N, 1 + side², Dv) -> norm -> rank -> norm -> (N, 1 + side², out_dim).

    `start`: what the tokens are before anything is learnt, (1 + side², out_dim); the map adds to it.
    """

    start: Tensor | None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        side: int,
        rank: int,
        dropout: float = 0.0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.side = side
        self.num_tokens = 1 + side * side
        self.out_dim = out_dim
        self.norm = nn.LayerNorm(in_dim)
        self.reduce = nn.Linear(in_dim, rank)
        self.positions = nn.Parameter(torch.randn(self.num_tokens, rank) * 0.02)
        self.norm_rank = nn.LayerNorm(rank)
        self.expand = nn.Linear(rank, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("start", start, persistent=False)
        nn.init.normal_(self.expand.weight, std=0.02 if start is None else _SMALL)

    @classmethod
    def of_tokens(cls, in_dim: int, out_dim: int, num_tokens: int, *, rank: int, dropout: float = 0.0) -> GridMap:
        """The map of so many tokens. Raises: ConfigError where they are not one more than a square."""
        side = math.isqrt(num_tokens - 1)
        if side < 1 or 1 + side * side != num_tokens:
            raise ConfigError(f"system.num_tokens: a grid has 2, 5, 10, 17 ... tokens, found {num_tokens}; change it")
        return cls(in_dim, out_dim, side=side, rank=rank, dropout=dropout)

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens (N, 1 + side², out_dim) of features whose positions are a square grid, or a sequence."""
        cells = torch.cat([features.pooled[:, None], pool_positions(features.tokens, self.side)], dim=1)
        cells = cells.to(self.reduce.weight.dtype)  # (N, K, Dv)
        reduced = self.reduce(self.dropout(self.norm(cells))) + self.positions  # (N, K, rank)
        soft: Tensor = self.expand(self.dropout(self.norm_rank(reduced)))  # (N, K, out_dim)
        return soft if self.start is None else soft + self.start


def pool_positions(tokens: Tensor, side: int) -> Tensor:
    """Averages S positions to side² cells: over the square grid where S is a square, else along the sequence.

    Shapes:
        tokens: (N, S, Dv); returns: (N, side², Dv)
    """
    rows, length, width = tokens.shape
    flat = tokens.float().transpose(1, 2)  # (N, Dv, S)
    edge = math.isqrt(length)
    if edge * edge != length:
        return F.adaptive_avg_pool1d(flat, side * side).transpose(1, 2)
    grid = flat.reshape(rows, width, edge, edge)  # (N, Dv, edge, edge)
    return F.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)  # (N, side², Dv)
