"""The Perceiver Resampler (Flamingo §3.1.1 and appendix A.1.1, arXiv:2204.14198)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.nn.attention import CrossAttention, Dense, Geometry, make_norm


class PerceiverResampler(nn.Module):
    """Any number of vectors -> `num_latents` vectors: learnt latents read them, and each other, layer by layer.

    Where they stand in a picture is theirs to tell. In which frame of a film they stand is told by one learnt vector
    a frame, spread over as many frames as there are; no frames, no such vectors (open_flamingo, Idefics).

    Args:
        dim: width of what is read, and of the latents
        depth: layers of attention and dense layer
        num_frames: learnt frame positions (the paper: 8)
        latent_scale: deviation of fresh latents (open_flamingo, Idefics: 1); of small ones more of a picture comes out
    """

    def __init__(
        self,
        dim: int,
        geometry: Geometry,
        *,
        num_latents: int,
        depth: int,
        num_frames: int = 0,
        latent_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim) * latent_scale)
        self.times = nn.Parameter(torch.randn(num_frames, dim)) if num_frames else None
        self.layers = nn.ModuleList(_Layer(dim, geometry) for _ in range(depth))
        self.norm = make_norm(geometry.norm, dim)

    def forward(self, context: Tensor, mask: Tensor, frames: int = 1) -> Tensor:
        """The latents after the last layer.

        Shapes:
            context: (N, S, dim), frame after frame; mask: (N, S) bool; frames: of every item, divides S
            returns: (N, K, dim)
        """
        latents, context, mask = self._begin(context, mask, frames)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        output: Tensor = self.norm(latents)
        return output

    @torch.no_grad()
    def attention(self, context: Tensor, mask: Tensor, frames: int = 1) -> Tensor:
        """The share of each position in each latent: (N, K, S), rows summing to 1.

        Of one layer its weights, mean over the heads; of several their product with the paths that pass a layer by
        (attention rollout, arXiv:2005.00928), without what came from no position at all.
        """
        latents, context, mask = self._begin(context, mask, frames)
        places = context.shape[1]
        share = context.new_zeros(len(context), latents.shape[1], places)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            weights = layer.weights(latents, context, mask).mean(dim=1)  # (N, K, S + K)
            share = (share + weights[..., :places] + weights[..., places:] @ share) / 2
            latents = layer(latents, context, mask)
        return share / share.sum(dim=-1, keepdim=True).clamp(min=1e-12)

    def _begin(self, context: Tensor, mask: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of every item, context with its times, and the mask of both: (N, 1, S + K)."""
        if self.times is not None:
            # The learnt times are the ends and the steps between them, whatever the number of frames.
            spread = F.interpolate(self.times.T[None], size=frames, mode="linear", align_corners=True)[0].T  # (F, dim)
            context = context + spread.repeat_interleave(context.shape[1] // frames, dim=0)
        latents = self.latents.expand(len(context), -1, -1)  # (N, K, dim)
        return latents, context, F.pad(mask, (0, latents.shape[1]), value=True)[:, None]


class _Layer(nn.Module):
    """Latents read [context; latents] in one softmax, then go through the dense layer."""

    def __init__(self, dim: int, geometry: Geometry) -> None:
        super().__init__()
        self.norm_context = make_norm(geometry.norm, dim)
        self.norm_latents = make_norm(geometry.norm, dim)
        self.attention = CrossAttention(dim, dim, geometry)
        self.norm_dense = make_norm(geometry.norm, dim)
        self.dense = Dense(dim, geometry)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(N, K, dim), (N, S, dim) and (N, 1, S + K) to (N, K, dim)."""
        normed, projected = self._read(latents, context)
        latents = latents + self.attention(normed, projected, mask)
        added: Tensor = self.dense(self.norm_dense(latents))
        return latents + added

    def weights(self, latents: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return self.attention.weights(*self._read(latents, context), mask)  # (N, H, K, S + K)

    def _read(self, latents: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm_latents(latents)
        return normed, self.attention.project(torch.cat([self.norm_context(context), normed], dim=1))
