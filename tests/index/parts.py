"""A stand-in for a graft's eyes, and indexes made with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graftlm.data.ledger import Ledger
from graftlm.data.sentence import Image
from graftlm.index.adding import AddResult, add_folder
from graftlm.index.catalogue import Identity
from graftlm.index.writer import IndexWriter, Photo
from tests.pictures import picture

WIDTH = 16
IDENTITY = Identity("toy-graft", "a" * 64, "b" * 64, WIDTH)


def unit(rows: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Random unit vectors that float16 holds exactly up to rounding."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Eyes:
    """Vectors from the pixels of a picture, and how many it was asked for."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Sequence[Image]) -> np.ndarray:
        from graftlm.data.media import load_image  # torch, which the processes that are killed do without

        rows = []
        for image in images:
            pixels = load_image(image.source).tobytes()
            seed = int.from_bytes(hashlib.sha256(pixels).digest()[:8], "little")
            rows.append(unit(1, seed=seed)[0])
        self.seen += len(images)
        return np.stack(rows)


def photos(folder: Path, count: int, start: int = 0) -> Path:
    """A folder of different small pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        picture(number).save(folder / f"{number:03d}.png")
    return folder


def add(index: Path, root: Path, eyes: Eyes | None = None, identity: Identity = IDENTITY) -> AddResult:
    """Adds a folder of pictures."""
    with IndexWriter(index, identity) as writer:
        return add_folder(writer, root, eyes or Eyes(), Ledger())


def keys(count: int, start: int = 0) -> list[bytes]:
    """Content hashes of nothing."""
    return [hashlib.sha256(str(number).encode()).digest() for number in range(start, start + count)]


def fill(index: Path, vectors: np.ndarray, start: int = 0) -> list[bytes]:
    """Puts vectors into an index as photos that exist nowhere; returns their content hashes."""
    names = keys(len(vectors), start)
    written = [Photo(f"/photos/{start + n:07d}.jpg", n, n, key, float(n)) for n, key in enumerate(names)]
    with IndexWriter(index, Identity("toy-graft", "a" * 64, "b" * 64, vectors.shape[1])) as writer:
        writer.add(written, dict(zip(names, vectors, strict=True)))
    return names
