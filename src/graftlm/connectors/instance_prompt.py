"""A prompt written for each input: what it holds, through a small network (IPT §3, arXiv:2206.01958).

It reads features as every connector does: vectors of words here, the cells of a picture or the frames of a sound too.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features
from graftlm.nn.text_encoders import TextEncoder

_SMALL = 0.005


class InstancePrompt(Connector):
    """(N, S, Dv) -> K vectors of each item -> (N, K, out_dim).

    `network` None: the j-th vector is the j-th feature, cut or filled to K. Where `out_dim` is not Dv, one linear map
    widens every vector; it begins small, so that a prompt added to another one begins as that one.
    """

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int, network: TextEncoder | None = None) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.out_dim = out_dim
        self.network = network
        self.widen = None if in_dim == out_dim else nn.Linear(in_dim, out_dim)
        if self.widen is not None:
            nn.init.normal_(self.widen.weight, std=_SMALL)
            nn.init.zeros_(self.widen.bias)

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens (N, K, out_dim); zeros where `used` is False."""
        if self.network is not None:
            vectors: Tensor = self.network(features.tokens, features.mask)  # (N, K, Dv)
        else:
            vectors = F.pad(features.tokens[:, : self.num_tokens], (0, 0, 0, self._missing(features)))
        vectors = vectors if self.widen is None else self.widen(vectors)
        return vectors * self.used(features)[..., None].to(vectors.dtype)

    def used(self, features: Features) -> Tensor:
        """(N, K) bool: which tokens stand for something; all of those a network writes."""
        if self.network is not None:
            return features.mask.new_ones(len(features), self.num_tokens)
        return F.pad(features.mask[:, : self.num_tokens], (0, self._missing(features)), value=False)

    def _missing(self, features: Features) -> int:
        return max(0, self.num_tokens - features.mask.shape[1])
