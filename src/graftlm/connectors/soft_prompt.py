"""A task's prompt: K vectors that are the same for every input (prompt tuning §2, arXiv:2104.08691)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features
from graftlm.nn.prompt_maps import PrefixMLP, PromptLSTM, PromptMLP

PromptMap = PromptLSTM | PromptMLP | PrefixMLP


class SoftPrompt(Connector):
    """`start` (K, W), trained, and a network behind it where one is given, which writes the tokens (K, out_dim)."""

    def __init__(self, start: Tensor, out_dim: int, through: PromptMap | None = None) -> None:
        super().__init__()
        self.num_tokens = len(start)
        self.out_dim = out_dim
        self.vectors = nn.Parameter(start.detach().float().clone())
        self.through = through

    def tokens(self) -> Tensor:
        """The prompt: (K, out_dim)."""
        return self.vectors if self.through is None else self.through(self.vectors)

    def expand(self, rows: int) -> tuple[Tensor, Tensor]:
        """The prompt of so many inputs: (rows, K, out_dim), and its mask (rows, K)."""
        soft = self.tokens().expand(rows, -1, -1)
        return soft, torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device)

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """The same tokens (N, K, out_dim) whatever was seen."""
        return self.expand(len(features))[0]
