"""An encoder of pictures that looks at films, frame by frame (Flamingo §3.1, arXiv:2204.14198)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftlm.data.sentence import Image, Media, Part, Video
from graftlm.encoders.base import Encoder, Features, require

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class FrameEncoder(Encoder):
    """Every frame's positions, one frame after the other; pooled: the mean over the frames.

    Args:
        encoder: of pictures
        load: from a film to its frames, of `most` at most
        most: frames of a film

    Shapes:
        inputs: (N, F, ...), what `encoder` takes of F frames, NaN where a film has fewer
    """

    modality = "video"

    def __init__(self, encoder: Encoder, load: Callable[[Media], Sequence[PILImage]], *, most: int = 8) -> None:
        super().__init__()
        self.encoder = encoder
        self.load = load
        self.dim = encoder.dim
        self.num_positions = most * encoder.num_positions
        self.fingerprint = hashlib.sha256(f"frames\0{most}\0{encoder.fingerprint}".encode()).hexdigest()

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Frames of films as (N, F, ...). Raises: BadSampleError for unreadable ones."""
        films = [self.load(require(part, Video).source) for part in media]
        frames = [self.encoder.preprocess([Image(frame) for frame in film]) for film in films]
        return torch.nn.utils.rnn.pad_sequence(frames, batch_first=True, padding_value=float("nan"))

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, F, ...); gradients flow."""
        there = ~inputs.flatten(2).isnan().any(dim=-1)  # (N, F)
        seen: Features = self.encoder(inputs[there])  # of all frames, (sum of F, S, Dv)
        tokens = seen.tokens.new_zeros(*there.shape, *seen.tokens.shape[1:])  # (N, F, S, Dv)
        mask = there[..., None] & seen.mask.new_ones(seen.mask.shape[1])  # (N, F, S)
        weights = there[..., None] / there.sum(dim=1)[:, None, None]  # (N, F, 1)
        pooled = seen.pooled.new_zeros(*there.shape, self.dim).index_put(there.nonzero(as_tuple=True), seen.pooled)
        tokens = tokens.index_put(there.nonzero(as_tuple=True), seen.tokens)
        mask = mask.index_put(there.nonzero(as_tuple=True), seen.mask)
        return Features(tokens.flatten(1, 2), mask.flatten(1, 2), (pooled * weights).sum(dim=1))
