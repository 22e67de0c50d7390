"""Trainable special tokens beside a frozen vocabulary (FROMAGe §3, arXiv:2301.13823).

The frozen matrices are never resized and no gradient is masked: a new token has vectors of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from graftlm.nn.standardise import Standardise

NormPolicy = Literal["mean", "free"]
_NOISE = 0.1
"""Spread of the first vectors around the mean row, as a fraction of the spread of the rows."""

_LEVEL_SPEED = 8.0
"""A level moves so much faster than a vector's channel: it has to come from the mean logit to that of a likely word."""


class ExtraTokens(nn.Module):
    """`count` tokens, each with an input and an output vector in float32; with a tied LM both are one parameter.

    They are single vectors and no matrix, so weight decay leaves them alone. They begin at the mean of the frozen rows
    with a little noise.

    Args:
        inputs, outputs: the frozen rows (V, D); `outputs` is None where the LM ties them
        input_scale: what an LM multiplies its rows by on the way in
        norm: mean = `renormalise` gives every vector the mean norm of the frozen rows; free = it changes nothing
        standardised: output vectors read states whose channels have been evened out, and have a level besides. A few
            channels are a hundred times as large as the others, and a plain vector learns of little else. The norm
            policy is not theirs: they are no rows of the frozen matrix's kind
    """

    def __init__(
        self,
        inputs: Tensor,
        outputs: Tensor | None,
        count: int,
        *,
        input_scale: float = 1.0,
        norm: NormPolicy = "mean",
        standardised: bool = False,
    ) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.norm: NormPolicy = norm
        read = _Rows.of(inputs)
        written = read if outputs is None or outputs is inputs else _Rows.of(outputs)
        self.input_norm, self.output_norm = read.norm, written.norm
        self.input_vectors = read.begin(count)
        self.output_vectors = None if outputs is None else written.begin(count)
        self.even = Standardise(inputs.shape[1]) if standardised else None
        self.levels = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(count * standardised)])
        self.renormalise()

    def __len__(self) -> int:
        return len(self.input_vectors)

    @property
    def is_tied(self) -> bool:
        """Whether a token's two vectors are one parameter, whose gradient sums both sides."""
        return self.output_vectors is None

    def embed(self, numbers: Tensor) -> Tensor:
        """Input vectors of tokens by number: (N,) long in [0, count) to (N, D) float32."""
        return torch.stack(list(self.input_vectors))[numbers] * self.input_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the tokens, before what an LM does to its own: (..., D) to (..., count) float32."""
        vectors = self.input_vectors if self.output_vectors is None else self.output_vectors
        rows, states = torch.stack(list(vectors)), hidden.float()
        if self.even is None:
            return states @ rows.T
        even: Tensor = self.even(states.flatten(0, -2)).view_as(states)
        return even @ rows.T + torch.stack(list(self.levels)) * _LEVEL_SPEED

    @torch.no_grad()
    def renormalise(self) -> None:
        """Applies the norm policy; to be called after every step of the optimiser."""
        if self.norm == "free":
            return
        for vector in self.input_vectors:
            vector.mul_(self.input_norm / vector.norm().clamp(min=1e-12))
        if self.output_vectors is None or self.even is not None:
            return
        for vector in self.output_vectors:
            vector.mul_(self.output_norm / vector.norm().clamp(min=1e-12))


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is asked of frozen rows, which are looked through once: they are the largest matrix of most models.

    Attributes:
        mean: their mean (D,); norm: their mean norm; spread: root of the mean square of their numbers
    """

    mean: Tensor
    norm: float
    spread: float

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor) -> _Rows:
        """Those of rows (V, D)."""
        norms = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=torch.float32)
        mean = rows.detach().mean(dim=0, dtype=torch.float32)
        return cls(mean, float(norms.mean()), (float(norms.square().mean()) / rows.shape[1]) ** 0.5)

    @torch.no_grad()
    def begin(self, count: int) -> nn.ParameterList:
        """First vectors: the mean and a little noise."""
        noise = torch.randn(count, len(self.mean)).to(self.mean) * self.spread * _NOISE
        return nn.ParameterList([nn.Parameter((self.mean + own).clone()) for own in noise])
