"""What the published variants of Flamingo fix: the paper's, open_flamingo's and Idefics'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from graftlm.nn.attention import Activation, Geometry, Norm

VariantName = Literal["paper", "open_flamingo", "idefics"]
_STEP = 256  # of the width of Llama's dense layers


@dataclass(frozen=True, slots=True)
class Variant:
    """Sizes and choices; a head width of 0 is the width of the states divided by the heads.

    Attributes:
        offset: a block stands before layers i with i % every == offset % every
        num_frames: learnt frame positions
    """

    offset: int
    num_frames: int
    resampler_activation: Activation
    resampler_head_dim: int
    activation: Activation
    norm: Norm
    head_dim: int
    qk_norm: bool = False

    def resampler(self, dim: int, heads: int, *, width: int, dropout: float) -> Geometry:
        """Of a resampler over states of `dim`; `width`: of its attention where it is not the variant's, else 0."""
        head_dim = (width or dim) // heads if width or not self.resampler_head_dim else self.resampler_head_dim
        activation = self.resampler_activation
        return Geometry(heads, head_dim, 4 * dim, activation, qk_norm=self.qk_norm, dropout=dropout)

    def block(self, dim: int, heads: int, *, width: int, dropout: float) -> Geometry:
        """Of a block in a language model of width `dim`; `width`: of attention and dense layer, 0 = the variant's.

        The hidden states of a gated dense layer are as wide as Llama's: 8/3 of `dim`, in steps of 256.
        """
        head_dim = (width or dim) // heads if width or not self.head_dim else self.head_dim
        wide = math.ceil(8 * dim / 3 / _STEP) * _STEP if self.activation == "swiglu" else 4 * dim
        return Geometry(heads, head_dim, width or wide, self.activation, self.norm, self.qk_norm, dropout)

    def divided(self, resampler_dim: int, block_dim: int, *, width: int) -> list[int]:
        """Widths that the heads have to divide."""
        if width:
            return [width]
        fixed = ((resampler_dim, self.resampler_head_dim), (block_dim, self.head_dim))
        return [dim for dim, head_dim in fixed if not head_dim]


VARIANTS: dict[VariantName, Variant] = {
    "paper": Variant(0, 8, "squared_relu", 0, "squared_relu", "layer", 0),
    "open_flamingo": Variant(-1, 0, "gelu", 64, "gelu", "layer", 64),
    "idefics": Variant(0, 0, "relu", 96, "swiglu", "rms", 0, qk_norm=True),
}
