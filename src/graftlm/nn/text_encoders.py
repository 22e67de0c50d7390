"""Small networks that turn a sequence of vectors into K vectors: the encoders of Instance-wise Prompt Tuning.

IPT §3.3 (arXiv:2206.01958): a recurrent, a convolutional and a plain network, each with a head for its pre-training.
All read any length and any batch, and padding changes nothing. The released ones do not: the recurrent network takes
the batch for the time, the convolutional one reads one length alone, and dropout of the plain one never ends.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NetworkName = Literal["lstm", "cnn", "mlp"]
_LSTM_HIDDEN = 64
_CNN_WIDTHS = (3, 4, 5)
_DROPOUT = 0.5


class LSTMEncoder(nn.Module):
    """Two bidirectional LSTM layers of 64; the last state of both directions -> Linear -> (N, K, D)."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.shape = (num_tokens, dim)
        self.feature_dim = 2 * _LSTM_HIDDEN
        self.lstm = nn.LSTM(dim, _LSTM_HIDDEN, 2, bidirectional=True, batch_first=True)
        self.project = nn.Linear(self.feature_dim, num_tokens * dim)

    def features(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) to (N, 128)."""
        vectors, lengths = _to_the_left(vectors, mask)
        packed = nn.utils.rnn.pack_padded_sequence(
            vectors, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)  # last: (layers * 2, N, 64)
        return torch.cat([last[-2], last[-1]], dim=-1)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) bool to (N, K, D)."""
        written: Tensor = self.project(self.features(vectors, mask))
        return written.view(len(vectors), *self.shape)


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 vectors, ReLU, the largest over the text -> Linear -> (N, K, D) (arXiv:1408.5882).

    `filters`: of each width; the released code has one, so that a whole prompt is a linear image of three numbers.
    """

    def __init__(self, dim: int, num_tokens: int, *, filters: int = 64) -> None:
        super().__init__()
        self.shape = (num_tokens, dim)
        self.feature_dim = len(_CNN_WIDTHS) * filters
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, filters, width) for width in _CNN_WIDTHS)
        self.project = nn.Linear(self.feature_dim, num_tokens * dim)

    def features(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) to (N, 3 * filters); a text shorter than a filter is followed by zeros."""
        vectors, lengths = _to_the_left(vectors, mask)
        vectors = F.pad(vectors, (0, 0, 0, max(0, _CNN_WIDTHS[-1] - vectors.shape[1]))).transpose(1, 2)  # (N, D, S)
        found = []
        for convolution, width in zip(self.convolutions, _CNN_WIDTHS, strict=True):
            seen = F.relu(convolution(vectors))  # (N, filters, S - width + 1)
            places = torch.arange(seen.shape[2], device=seen.device)
            inside = places < (lengths[:, None] - width + 1).clamp(min=1)  # (N, S - width + 1)
            found.append(seen.masked_fill(~inside[:, None], 0.0).amax(dim=-1))  # ReLU: nothing lies below 0
        return torch.cat(found, dim=-1)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) bool to (N, K, D)."""
        written: Tensor = self.project(self.features(vectors, mask))
        return written.view(len(vectors), *self.shape)


class MeanMLP(nn.Module):
    """The mean of the vectors -> Linear, ReLU, dropout -> (N, K, D).

    `always_drops`: dropout in evaluation too, as in the released code.
    """

    def __init__(self, dim: int, num_tokens: int, *, always_drops: bool = False) -> None:
        super().__init__()
        self.shape = (num_tokens, dim)
        self.feature_dim = num_tokens * dim
        self.always_drops = always_drops
        self.project = nn.Linear(dim, self.feature_dim)

    def features(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) to (N, K * D)."""
        weight = mask[..., None].to(vectors.dtype)
        mean = (vectors * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # (N, D)
        return F.dropout(F.relu(self.project(mean)), _DROPOUT, training=self.training or self.always_drops)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(N, S, D), (N, S) bool to (N, K, D)."""
        return self.features(vectors, mask).view(len(vectors), *self.shape)


TextEncoder = LSTMEncoder | TextCNN | MeanMLP


def text_encoder(name: NetworkName, dim: int, num_tokens: int, *, released: bool = False) -> TextEncoder:
    """The encoder of a name; `released`: with what the released one does differently and still runs."""
    if name == "lstm":
        return LSTMEncoder(dim, num_tokens)
    if name == "cnn":
        return TextCNN(dim, num_tokens, filters=1) if released else TextCNN(dim, num_tokens)
    return MeanMLP(dim, num_tokens, always_drops=released)


def _to_the_left(vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors that may be used at the beginning of each row, zeros behind them, and how many: (N, S, D), (N,)."""
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)  # (N, S)
    moved = vectors.gather(1, order[..., None].expand_as(vectors))
    lengths = mask.sum(dim=1)
    inside = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    return moved * inside[..., None].to(moved.dtype), lengths
