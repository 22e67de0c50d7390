"""A Perceiver Resampler over what an encoder saw (Flamingo §3.1.1, arXiv:2204.14198)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features
from graftlm.nn.resampler import PerceiverResampler


class Perceiver(Connector):
    """All positions (N, S, Dv) -> (N, K, W), W the resampler's width; where that is not Dv, a norm and a map first.

    A film is the positions of its frames one after the other; films of different length and pictures may be mixed.

    Args:
        positions_per_frame: S of one picture; an item of more has several frames
        dropout: of the encoder's vectors, fraction
    """

    def __init__(
        self, in_dim: int, width: int, resampler: PerceiverResampler, *, positions_per_frame: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_tokens, self.out_dim = len(resampler.latents), width
        self.positions_per_frame = positions_per_frame
        self.dropout = nn.Dropout(dropout)
        self.reduce = (
            nn.Identity() if width == in_dim else nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, width))
        )
        self.resampler = resampler

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Latents (N, K, W) of features (N, S, Dv)."""
        return self._by_frames(features, self.resampler)

    def attention(self, features: Features) -> Tensor:
        """The share of each position in each latent, (N, K, S); see `PerceiverResampler.attention`."""
        width = features.tokens.shape[1]

        def padded(tokens: Tensor, mask: Tensor, frames: int) -> Tensor:
            return F.pad(self.resampler.attention(tokens, mask, frames), (0, width - tokens.shape[1]))

        return self._by_frames(features, padded)

    def _by_frames(self, features: Features, read: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        """What `read` gives for items of equal numbers of frames together, in the items' order."""
        tokens = self.reduce(self.dropout(features.tokens.to(self.resampler.latents.dtype)))  # (N, S, W)
        size = self.positions_per_frame
        frames = ((features.mask.sum(dim=1) + size - 1) // size).clamp(min=1)  # (N,)
        found: list[Tensor] = []
        order: list[Tensor] = []
        for count in sorted(set(frames.tolist())):
            items = (frames == count).nonzero()[:, 0]
            found.append(read(tokens[items, : count * size], features.mask[items, : count * size], count))
            order.append(items)
        return torch.cat(found)[torch.cat(order).argsort()]
