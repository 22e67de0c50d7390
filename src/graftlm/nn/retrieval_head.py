"""From what a model holds of an item to one vector of the space in which pictures and queries meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.nn.standardise import Standardise


class QueryHead(nn.Module):
    """What a language model holds at S retrieval states, and at the words before them -> one vector.

    Without `word_sources` the paper's: a linear map of each state, summed (FROMAGe §3.1, arXiv:2301.13823). With them
    all states are normalised, and the words' own states in so many layers, averaged by a learnt weight, are mapped
    beside them: what a picture shows is told by the words' lower layers rather than by what comes next. Every channel
    of both is standardised.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, sources: int = 1, word_sources: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.reads_words = word_sources > 0
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(sources * in_dim, out_dim)
        wide = word_sources * in_dim
        self.even = Standardise(sources * in_dim) if word_sources else nn.Identity()
        self.even_words = Standardise(wide) if word_sources else nn.Identity()
        self.weigh = nn.Linear(wide, 1, bias=False) if word_sources else nn.Identity()
        self.project_words = nn.Linear(wide, out_dim, bias=False) if word_sources else nn.Identity()

    def forward(self, states: Tensor, words: Tensor, owners: Tensor) -> Tensor:
        """States (N, S, in_dim), all rows' words (W, word_sources, in_dim) and the row of each (W,) to (N, out_dim)."""
        dtype = self.project.weight.dtype
        states = states.to(dtype)
        if not self.reads_words:
            linear: Tensor = self.project(states.flatten(1))
            return linear
        states, words = _normalise(states), _normalise(words.to(dtype)).flatten(1)  # (W, word_sources * in_dim)
        own_words = owners == torch.arange(len(states), device=owners.device)[:, None]  # (N, W)
        # A row without words has equal weights on nothing.
        weights = self.weigh(words)[:, 0].masked_fill(~own_words, -1e9).softmax(dim=-1) * own_words  # (N, W)
        average = weights @ words  # (N, word_sources * in_dim)
        own: Tensor = self.project(self.dropout(self.even(states.flatten(1))))
        added: Tensor = self.project_words(self.dropout(self.even_words(average)))
        return own + added


class PictureHead(nn.Module):
    """What an encoder saw in a picture -> one vector.

    Without `hidden` the paper's: a linear map of the pooled vector. With `hidden` the pooled vector and every position
    go through a layer of GELUs; beside the pooled one stands an average of the positions, weighed by what they hold.

    Shapes:
        pooled (N, in_dim), tokens (N, S, in_dim), mask (N, S) bool to (N, out_dim)
    """

    def __init__(self, in_dim: int, out_dim: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.bends = hidden > 0
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Linear(in_dim, hidden) if hidden else nn.Identity()
        self.weigh = nn.Linear(hidden, 1, bias=False) if hidden else nn.Identity()
        self.project = nn.Linear(2 * hidden or in_dim, out_dim)

    def forward(self, pooled: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(N, in_dim), (N, S, in_dim) and (N, S) to (N, out_dim)."""
        dtype = self.project.weight.dtype
        if not self.bends:
            linear: Tensor = self.project(pooled.to(dtype))
            return linear
        whole, parts = self._bend(pooled.to(dtype)), self._bend(tokens.to(dtype))  # (N, hidden), (N, S, hidden)
        weights = self.weigh(parts)[..., 0].masked_fill(~mask, float("-inf")).softmax(dim=-1)  # (N, S)
        picked = (weights[:, None] @ parts)[:, 0]  # (N, hidden)
        projected: Tensor = self.project(self.dropout(torch.cat([whole, picked], dim=-1)))
        return projected

    def _bend(self, states: Tensor) -> Tensor:
        """All positions of a picture lose the same channels: what is dropped at one is not to be read at another."""
        normal = _normalise(states)
        kept = self.dropout(torch.ones_like(normal[:, :1] if normal.dim() == 3 else normal))
        return F.gelu(self.reduce(normal * kept if self.training else normal))


def _normalise(states: Tensor) -> Tensor:
    return F.layer_norm(states, states.shape[-1:])
