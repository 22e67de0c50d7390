"""The trained part: from features to soft tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from graftlm.encoders.base import Features


class Connector(nn.Module, ABC):
    """Maps what an encoder saw to K vectors the language model can take.

    Attributes:
        num_tokens: K, soft tokens per media item
        out_dim: width of a soft token: the LM's D, or `PrefixGeometry.token_dim` for a per-layer prefix
    """

    num_tokens: int
    out_dim: int

    @abstractmethod
    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens of every item.

        Shapes:
            features: tokens (N, S, Dv); instruction: (N, L, D) embeddings of the instruction, or None
            returns: (N, K, out_dim)
        """
