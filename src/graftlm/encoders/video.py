"""Films through any encoder that reads pictures, frame by frame (Flamingo §2.1, arXiv:2204.14198).

What comes after tells the frames apart by `Features.by_frame`; time embeddings are a connector's. A picture is a film
of one frame, so a system may ask one encoder for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftlm.data.media import load_image
from graftlm.data.sentence import Image, Part, Video
from graftlm.data.video import Sampling, load_frames
from graftlm.encoders.base import Encoder, Features, require


class FrameEncoder(Encoder):
    """The frames of a film one after the other: S = F * positions of a frame, pooled = mean over the frames.

    Args:
        encoder: reads the frames as pictures
        frames: F, most frames of a film; a shorter one has fewer
        rate_hz: so many frames a second, up to `frames`; None: `frames`, evenly spread

    Shapes:
        inputs: (N, F, ...) with the encoder's own inputs; frames that a shorter film lacks are NaN
    """

    modality = "video"

    def __init__(self, encoder: Encoder, frames: int = 8, rate_hz: float | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.sampling = Sampling(frames, rate_hz)
        self.dim = encoder.dim
        self.num_positions = frames * encoder.num_positions
        settings = json.dumps({"encoder": encoder.fingerprint, "frames": frames, "rate_hz": rate_hz})
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    @property
    def frame_positions(self) -> int:
        """S of one frame."""
        return self.encoder.num_positions

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Films, or pictures, as (N, F, ...).

        Raises: BadSampleError for unreadable ones; MissingExtraError for a film file without PyAV.
        """
        films = [self.encoder.preprocess(self._frames(part)) for part in media]
        longest = max(len(film) for film in films)
        inputs = films[0].new_full((len(films), longest, *films[0].shape[1:]), torch.nan)
        for row, film in enumerate(films):
            inputs[row, : len(film)] = film
        return inputs

    def forward(self, inputs: Tensor) -> Features:
        """Features of (N, F, ...); gradients flow."""
        there = ~inputs.flatten(2)[..., 0].isnan()  # (N, F)
        seen: Features = self.encoder(inputs[there])  # all frames that are there
        missing = self.frame_positions - seen.tokens.shape[1]
        tokens = seen.tokens.new_zeros(*there.shape, self.frame_positions, self.dim)
        mask = torch.zeros(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
        pooled = seen.pooled.new_zeros(*there.shape, self.dim)
        tokens[there] = nn.functional.pad(seen.tokens, (0, 0, 0, missing))
        mask[there] = nn.functional.pad(seen.mask, (0, missing))
        pooled[there] = seen.pooled
        mean = pooled.sum(1) / there.sum(1, keepdim=True)  # (N, Dv)
        return Features(tokens.flatten(1, 2), mask.flatten(1, 2), mean)

    def _frames(self, part: Part) -> list[Image]:
        if isinstance(part, Image):
            return [Image(load_image(part.source))]
        return [Image(frame) for frame in load_frames(require(part, Video).source, self.sampling)]
