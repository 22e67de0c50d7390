"""One linear map from a picture's vector to K soft tokens (Frozen §3, arXiv:2106.13884)."""

from __future__ import annotations

from torch import Tensor, nn

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features


class Linear(Connector):
    """pooled (N, Dv) -> one linear map -> (N, K, D)."""

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.out_dim = out_dim
        self.projection = nn.Linear(in_dim, num_tokens * out_dim)

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens (N, K, D) of pooled features (N, Dv)."""
        soft: Tensor = self.projection(features.pooled.to(self.projection.weight.dtype))  # (N, K * D)
        return soft.view(len(features), self.num_tokens, self.out_dim)  # (N, K, D)
