"""Maps behind a prompt's own vectors: the same prompt, written by a small network (reparametrisation).

P-tuning's (arXiv:2103.10385 §3.2) read the prompt as a sequence or vector by vector; prefix tuning's (arXiv:2101.00190
§4.3) widens a vector to the keys and values of every layer. Names and order of the weights are peft's, so that its
encoders can be copied in (tests/parity/test_prompts_parity.py).
"""

from __future__ import annotations

from torch import Tensor, nn


class PromptLSTM(nn.Module):
    """(K, D) -> bidirectional LSTM over the K vectors -> Linear, ReLU, Linear -> (K, D)."""

    def __init__(self, dim: int, hidden: int, *, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm_head = nn.LSTM(dim, hidden, num_layers, dropout=dropout, bidirectional=True, batch_first=True)
        self.mlp_head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """(K, D) to (K, D)."""
        read, _ = self.lstm_head(vectors[None])  # (1, K, 2 * hidden)
        written: Tensor = self.mlp_head(read)
        return written[0]


class PromptMLP(nn.Module):
    """(K, D) -> Linear, ReLU, Linear, ReLU, Linear -> (K, D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)]
        self.mlp_head = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(K, D) to (K, D)."""
        written: Tensor = self.mlp_head(vectors)
        return written


class PrefixMLP(nn.Module):
    """(K, D) -> Linear, tanh, Linear -> (K, token_dim)."""

    def __init__(self, dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, out_dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """(K, D) to (K, token_dim)."""
        written: Tensor = self.transform(vectors)
        return written
