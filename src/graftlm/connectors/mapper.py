"""ClipCap's transformer mapper (ClipCap §3.2 and figure 3, arXiv:2111.09734)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.encoders.base import Features
from graftlm.errors import ConfigError


class TransformerMapper(Connector):
    """pooled -> linear to `clip_length` vectors, K learnt constants behind them, pre-norm self-attention layers.

    The last K positions are the soft tokens. No positions, no mask, no final norm; query, key and value
    maps have no bias.

    Raises: ConfigError when the width is no multiple of the heads.
    """

    def __init__(
        self, in_dim: int, out_dim: int, num_tokens: int, *, clip_length: int, num_layers: int, num_heads: int
    ) -> None:
        super().__init__()
        if out_dim % num_heads:
            raise ConfigError(f"transformer mapper: {num_heads} heads do not divide the width {out_dim}; set num_heads")
        self.num_tokens = num_tokens
        self.out_dim = out_dim
        self.clip_length = clip_length
        self.linear = nn.Linear(in_dim, clip_length * out_dim)
        self.constants = nn.Parameter(torch.randn(num_tokens, out_dim))
        self.layers = nn.ModuleList(MapperLayer(out_dim, num_heads) for _ in range(num_layers))

    def forward(self, features: Features, instruction: Tensor | None = None) -> Tensor:
        """Soft tokens (N, K, D) of pooled features (N, Dv)."""
        rows = len(features)
        image = self.linear(features.pooled.to(self.linear.weight.dtype))  # (N, C * D)
        image = image.view(rows, self.clip_length, self.out_dim)  # (N, C, D)
        states = torch.cat([image, self.constants.expand(rows, -1, -1)], dim=1)  # (N, C + K, D)
        for layer in self.layers:
            states = layer(states)
        return states[:, self.clip_length :]  # (N, K, D)


class MapperLayer(nn.Module):
    """Pre-norm self-attention and a two-layer ReLU network of ratio 2."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, states: Tensor) -> Tensor:
        """(N, T, D) to (N, T, D)."""
        states = states + self.project(self._attend(self.norm1(states)))
        hidden: Tensor = self.fc2(F.relu(self.fc1(self.norm2(states))))
        return states + hidden

    def _attend(self, normed: Tensor) -> Tensor:
        rows, length, dim = normed.shape
        shape = (rows, length, self.num_heads, dim // self.num_heads)
        queries = self.to_queries(normed).view(shape).transpose(1, 2)  # (N, H, T, dh)
        keys, values = self.to_keys_values(normed).chunk(2, dim=-1)
        keys, values = (part.reshape(shape).transpose(1, 2) for part in (keys, values))
        mixed = F.scaled_dot_product_attention(queries, keys, values)  # (N, H, T, dh)
        return mixed.transpose(1, 2).reshape(rows, length, dim)
