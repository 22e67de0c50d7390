"""Frozen perception: media in, feature vectors out."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from graftlm.data.sentence import Part
from graftlm.errors import DataError, ShapeError

PartT = TypeVar("PartT", bound="Part")


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder saw in N media items.

    Shapes:
        tokens: (N, S, Dv) float, one vector per position (a patch, a frame, a cell of the grid)
        mask: (N, S) bool, True = may be used
        pooled: (N, Dv) float, one vector per item
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Features:
        return Features(self.tokens[rows], self.mask[rows], self.pooled[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Features:
        """The same features on another device; `dtype` changes the vectors, never the mask."""
        return Features(self.tokens.to(device, dtype), self.mask.to(device), self.pooled.to(device, dtype))

    def by_frame(self, positions: int) -> tuple[Tensor, Tensor]:
        """The vectors of films frame by frame: a frame takes `positions` of S, its encoder's `frame_positions`.

        Shapes:
            returns: (N, F, positions, Dv) and mask (N, F, positions); a shorter film's last frames are all False
        """
        items, length, width = self.tokens.shape
        missing = -length % positions
        tokens = nn.functional.pad(self.tokens, (0, 0, 0, missing)).reshape(items, -1, positions, width)
        return tokens, nn.functional.pad(self.mask, (0, missing)).reshape(items, -1, positions)

    @staticmethod
    def stack(items: Sequence[Features]) -> Features:
        """Joins features along N, padding S to the longest. Raises: ShapeError when widths differ."""
        widths = {item.tokens.shape[-1] for item in items}
        if len(widths) != 1:
            raise ShapeError(f"features of one batch: expected one width, found {sorted(widths)}; use one encoder")
        length = max(item.tokens.shape[1] for item in items)
        return Features(
            torch.cat([nn.functional.pad(item.tokens, (0, 0, 0, length - item.tokens.shape[1])) for item in items]),
            torch.cat([nn.functional.pad(item.mask, (0, length - item.mask.shape[1])) for item in items]),
            torch.cat([item.pooled for item in items]),
        )


class Encoder(nn.Module, ABC):
    """A perceiving network whose weights are not trained here.

    Attributes:
        dim: Dv, width of a feature vector
        num_positions: S of one item, or the largest S where items differ
        fingerprint: hex digest of config, weights and preprocessing; the key of the feature cache
        modality: the part type it reads: "image", "audio", "video", "state" or "text"
    """

    dim: int
    num_positions: int
    fingerprint: str
    modality: str = "image"

    @property
    def frame_positions(self) -> int:
        """S of one frame of a film: what `Features.by_frame` needs. A picture is one frame."""
        return self.num_positions

    @abstractmethod
    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Media as the network's input, (N, ...). Raises: BadSampleError for unreadable media."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Features:
        """Features of preprocessed media; gradients flow (Frozen trains its encoder through here)."""

    def encode(self, media: Sequence[Part]) -> Features:
        """Features of N media items, without gradient."""
        with torch.no_grad():
            inputs = self.preprocess(media)
            parameter = next(self.parameters(), None)
            features: Features = self(inputs if parameter is None else inputs.to(parameter.device))
            return features

    def pool(self, media: Sequence[Part]) -> Tensor:
        """The pooled vectors alone, (N, Dv), without gradient."""
        return self.encode(media).pooled


def weights_fingerprint(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of weights, by name, type, shape and bytes, and of settings that JSON can hold."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().cpu()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require(part: Part, kind: type[PartT]) -> PartT:
    """`part` as the kind an encoder reads. Raises: DataError naming both kinds."""
    if not isinstance(part, kind):
        expected, found = kind.__name__.lower(), type(part).__name__.lower()
        raise DataError(
            f"this encoder reads parts of type {expected}, found one of type {found}; choose another encoder"
        )
    return part
