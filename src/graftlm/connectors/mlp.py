"""ClipCap's MLP mapper (ClipCap §3.2, arXiv:2111.09734)."""

from __future__ import annotations

from torch import Tensor, nn

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features


class MLP(Connector):
    """pooled (N, Dv) -> Linear -> tanh -> Linear -> (N, K, D), with a hidden width of K * D / 2."""

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.out_dim = out_dim
        hidden = out_dim * num_tokens // 2
        self.hidden = nn.Linear(in_dim, hidden)
        self.projection = nn.Linear(hidden, num_tokens * out_dim)

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens (N, K, D) of pooled features (N, Dv)."""
        hidden = self.hidden(features.pooled.to(self.hidden.weight.dtype)).tanh()  # (N, K * D / 2)
        soft: Tensor = self.projection(hidden)  # (N, K * D)
        return soft.view(len(features), self.num_tokens, self.out_dim)  # (N, K, D)
