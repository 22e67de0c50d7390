"""Encoders for tests, instant and seeded: one tells pictures apart, the other texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from graftlm.data.media import load_image, pixels
from graftlm.data.sentence import Image, Part, Text
from graftlm.encoders.base import Encoder, Features, require, weights_fingerprint


class ToyEncoder(Encoder):
    """One convolution over 2 x 2 large patches, its weights drawn from `seed`: S = 4, Dv = 16.

    Shapes:
        inputs: (N, 3, 16, 16) in [-1, 1]
    """

    size = 16

    def __init__(self, seed: int = 0, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.num_positions = 4
        generator = torch.Generator().manual_seed(seed)
        self.patch = nn.Conv2d(3, dim, kernel_size=8, stride=8)
        with torch.no_grad():
            self.patch.weight.normal_(std=0.2, generator=generator)
            self.patch.bias.normal_(std=0.2, generator=generator)  # type: ignore[union-attr]
        self.fingerprint = weights_fingerprint(self.state_dict(), {"encoder": "toy", "size": self.size})

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Pictures as (N, 3, 16, 16) in [-1, 1]. Raises: BadSampleError for unreadable ones."""
        sources = [require(part, Image).source for part in media]
        small = [load_image(source).resize((self.size, self.size), Resampling.BOX) for source in sources]
        return torch.stack([pixels(picture) for picture in small]).float() / 127.5 - 1

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, 3, 16, 16); gradients flow."""
        tokens = self.patch(inputs).tanh().flatten(2).transpose(1, 2)  # (N, 4, dim)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, tokens.mean(1))


class ToyTextEncoder(Encoder):
    """One random vector a byte, drawn from `seed`; a text is the mean of its bytes: S <= 64, Dv = 16.

    Shapes:
        inputs: (N, L) long, bytes plus one; 0 is padding
    """

    modality = "text"
    num_positions = 64

    def __init__(self, seed: int = 0, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.vectors = nn.Embedding(257, dim)
        with torch.no_grad():
            self.vectors.weight.normal_(generator=torch.Generator().manual_seed(seed))
        self.fingerprint = weights_fingerprint(self.state_dict(), {"encoder": "toy-text", "size": self.num_positions})

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Texts as (N, L) bytes plus one. Raises: DataError for another kind of part."""
        texts = [require(part, Text).content.encode()[: self.num_positions] for part in media]
        rows = [torch.tensor(list(text), dtype=torch.long) + 1 for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (N, L)

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, L) bytes plus one; gradients flow."""
        mask = inputs > 0  # (N, L)
        tokens = self.vectors(inputs)  # (N, L, dim)
        total = (tokens * mask[..., None]).sum(1)
        return Features(tokens, mask, total / mask.sum(1, keepdim=True).clamp(min=1))
