"""Small pictures for tests, each unlike the others."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 32) -> Image.Image:
    """A picture of random coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)
