"""Channels of equal mean and spread, told by the first batch (data-dependent initialisation, arXiv:1807.03039 §3.1).

A language model's hidden states have a few channels a hundred times as large as the others; a layer norm leaves them
so, and a head behind it learns of little else.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

_LARGEST_SCALE = 100.0


class Standardise(nn.Module):
    """``(x - shift) * scale`` for every channel; the first batch in training sets both, and there they stay.

    They are parameters, to be saved with what is trained, but their gradient is zero: moved by one, they fit the
    training set alone (docs/log.md). Until then it changes nothing. Under several processes all begin with the
    statistics of all rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, states: Tensor) -> Tensor:
        """(N, dim) to (N, dim)."""
        if self.training and self._is_fresh():
            self._begin(states.detach())
        return (states - _still(self.shift)) * _still(self.scale)

    def _is_fresh(self) -> bool:
        return bool((self.scale == 1).all()) and not bool(self.shift.any())

    @torch.no_grad()
    def _begin(self, rows: Tensor) -> None:
        wide = rows.double()
        sums = torch.stack([wide.sum(dim=0), wide.square().sum(dim=0), wide.new_full(wide.shape[1:], len(wide))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        total, squares, count = sums
        if float(count[0]) < 2:
            return
        mean = total / count
        spread = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.shift.copy_(mean)
        self.scale.copy_((1 / spread).clamp(max=_LARGEST_SCALE))


def _still(parameter: Tensor) -> Tensor:
    """The parameter with a gradient that is always zero; without any, no checkpoint would hold an optimiser's state."""
    return parameter + (parameter.detach() - parameter)
