"""Approximate search for large collections: inverted lists of 8-bit copies, re-ranked from the float16 vectors.

The file covers the first rows of the vectors; rows behind them are searched exactly, so nothing is ever missed. It is
written under a temporary name and renamed, and an index without it, or with a damaged one, is searched exactly.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftlm.data.gallery import Rows, Scores
from graftlm.errors import MissingExtraError
from graftlm.index.exact import Found, Mask, exact_scores, exact_search, faiss_module, merged
from graftlm.index.vectors import Stored

FROM_ROWS = 500_000
"""Below this, exact search is quicker than the language model that reads the query."""

STALE_SHARE = 0.1
_RERANKED = 4
_GOAL = 0.995
_TRIED = (8, 16, 32, 64, 128, 256)
_TRIAL_QUERIES = 200
_TRIAL_COUNT = 10
_POINTS_PER_LIST = 64
_ITERATIONS = 10
_BLOCK = 65_536
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApproximateFile:
    """What the catalogue knows of the file.

    Attributes:
        file: its name; num_bytes: its size; rows: how many vectors it covers
        probes: lists looked at for a query; recall: of the exact best ten, measured when it was built
    """

    file: str
    num_bytes: int
    rows: int
    probes: int
    recall: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Approximate:
    """The opened file; threads may share it."""

    def __init__(self, index: Any, about: ApproximateFile) -> None:
        self._index = index
        self.about = about

    @classmethod
    def open(cls, folder: Path, about: ApproximateFile, width: int) -> Approximate | None:
        """The file, or None (with a warning) where it or faiss is missing or it is damaged: then search is exact."""
        faiss = faiss_module()
        path = folder / about.file
        if faiss is None:
            _LOG.warning("%s: searched exactly, since faiss is missing; pip install 'graftlm[index]'", folder)
            return None
        try:
            if path.stat().st_size != about.num_bytes:
                raise RuntimeError("its size has changed")
            index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
            if index.ntotal != about.rows or index.d != width:
                raise RuntimeError("it holds other vectors")
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[-1]
            _LOG.warning("%s: searched exactly, since %s cannot be used (%s)", folder, about.file, reason)
            return None
        return cls(index, about)

    def search(self, stored: Stored, queries: Scores, count: int, allowed: Mask | None) -> list[Found]:
        """The best rows of all that are stored, those behind the file's searched exactly."""
        covered = self.about.rows
        found = self._search_lists(stored, queries, count, allowed, self.about.probes)
        if len(stored) == covered:
            return found
        rest = None if allowed is None else allowed[covered:]
        tail = exact_search(stored[covered:], queries, count, rest)
        return [
            merged([lists, (scores, rows + covered)], count) for lists, (scores, rows) in zip(found, tail, strict=True)
        ]

    def _search_lists(
        self, stored: Stored, queries: Scores, count: int, allowed: Mask | None, probes: int
    ) -> list[Found]:
        faiss = faiss_module()
        options = {"nprobe": probes}
        if allowed is not None:
            bits = np.packbits(allowed[: self.about.rows], bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        wanted = min(_RERANKED * count, self.about.rows)
        _, rows = self._index.search(queries, wanted, params=faiss.SearchParametersIVF(**options))
        return [self._reranked(stored, query, row, count) for query, row in zip(queries, rows, strict=True)]

    @staticmethod
    def _reranked(stored: Stored, query: Scores, rows: Rows, count: int) -> Found:
        rows = rows[rows >= 0]
        return merged([(exact_scores(stored, rows, query), rows)], count)


def build(folder: Path, name: str, stored: Stored, seed: int = 0) -> ApproximateFile:
    """Writes the file over all rows and measures how many lists a query needs.

    Raises: MissingExtraError without faiss; OSError when the disk is full.
    """
    faiss = faiss_module()
    if faiss is None:
        raise MissingExtraError("faiss-cpu", "index", "an approximate index")
    rows, width = stored.shape
    lists = 1 << max(4, round(np.log2(max(rows, 1)) / 2))
    index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = _ITERATIONS
    index.cp.max_points_per_centroid = _POINTS_PER_LIST
    index.cp.seed = seed + 1
    chosen = np.random.default_rng(seed).choice(rows, min(rows, _POINTS_PER_LIST * lists), replace=False)
    index.train(stored[np.sort(chosen)].astype(np.float32))
    for start in range(0, rows, _BLOCK):
        index.add(stored[start : start + _BLOCK].astype(np.float32))
    probes, recall = _tune(index, stored, lists, seed)
    size = _write(faiss, index, folder / name)
    return ApproximateFile(name, size, rows, probes, recall)


def _tune(index: Any, stored: Stored, lists: int, seed: int) -> tuple[int, float]:
    """The fewest lists that find the exact best ten of noisy queries, and the share found."""
    queries = noisy_queries(stored, _TRIAL_QUERIES, seed)
    truth = exact_search(stored, queries, _TRIAL_COUNT)
    trial = Approximate(index, ApproximateFile("", 0, len(stored), 0, 0.0))
    probes, recall = lists, 1.0
    for tried in _TRIED:
        if tried >= lists:
            break
        found = trial._search_lists(stored, queries, _TRIAL_COUNT, None, tried)
        share = recall_of(found, truth)
        if share >= _GOAL:
            return tried, share
        probes, recall = tried, share
    return probes, recall


def noisy_queries(stored: Stored, count: int, seed: int) -> Scores:
    """Unit vectors at about 45 degrees from stored ones: a query in words is never as near as another photo."""
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(stored), min(count, len(stored)), replace=False))
    noise = random.standard_normal((len(rows), stored.shape[1])).astype(np.float32)
    vectors = stored[rows].astype(np.float32) + noise / np.sqrt(np.float32(stored.shape[1]))
    scaled: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def recall_of(found: list[Found], truth: list[Found]) -> float:
    """The share of the true rows that were found."""
    hits = sum(len(np.intersect1d(ours[1], theirs[1])) for ours, theirs in zip(found, truth, strict=True))
    return hits / max(1, sum(len(theirs[1]) for theirs in truth))


def _write(faiss: Any, index: Any, path: Path) -> int:
    temporary = path.with_name(path.name + ".tmp")
    try:
        faiss.write_index(index, str(temporary))
    except RuntimeError as error:  # how faiss tells of a full disk
        raise OSError(28, f"cannot be written ({str(error).strip().splitlines()[-1]})", str(path)) from None
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    return path.stat().st_size
