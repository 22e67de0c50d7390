"""Exact search: every vector is looked at, as float16 where it lies.

With faiss the mapped file is scanned in place, a part of it in each thread; without, numpy does the same in blocks.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graftlm.data.gallery import Rows, Scores, best
from graftlm.index.vectors import Stored

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Found: TypeAlias = "tuple[Scores, Rows]"

_BLOCK = 16_384
_ROWS_PER_THREAD = 32_768
_QUERIES_AT_ONCE = 256
_MANY_QUERIES = 32
_SMALL = 8_192
"""Up to so many vectors numpy answers before faiss is imported."""

_FEW = 0.02
"""A share of allowed rows below which they are taken out and multiplied alone."""


def exact_search(stored: Stored, queries: Scores, count: int, allowed: Mask | None = None) -> list[Found]:
    """Scores and rows of the best `count` vectors for every query, best first.

    Shapes: stored (N, q) float16, queries (B, q) float32, allowed (N,): `True` may be found.
    """
    if allowed is not None:
        rows = np.flatnonzero(allowed)
        if len(rows) <= max(_BLOCK, _FEW * len(stored)):
            return _in_blocks(stored[rows], queries, count, None, rows)
    takes_blocks = len(stored) <= _SMALL or len(queries) > _MANY_QUERIES
    if not takes_blocks and faiss_module() is not None:
        return [_scan(stored, query, count, allowed) for query in queries]
    return _in_blocks(stored, queries, count, allowed, None)


def exact_scores(stored: Stored, rows: Rows, query: Scores) -> Scores:
    """Dot products of some rows with a query. Shapes: rows (n,), query (q,), answer (n,)."""
    scores: Scores = stored[rows].astype(np.float32) @ query
    return scores


@lru_cache(maxsize=1)
def faiss_module() -> Any:
    """faiss, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def num_threads() -> int:
    """Threads that faiss uses; one without it."""
    faiss = faiss_module()
    return 1 if faiss is None else min(int(faiss.omp_get_max_threads()), os.cpu_count() or 1)


def _scan(stored: Stored, query: Scores, count: int, allowed: Mask | None) -> Found:
    """One query over the mapped file, in threads."""
    parts = max(1, min(num_threads(), len(stored) // _ROWS_PER_THREAD))
    cuts = [len(stored) * part // parts // 8 * 8 for part in range(parts)] + [len(stored)]  # 8 rows are a mask's byte
    bits = None if allowed is None else np.packbits(allowed, bitorder="little")
    work = [(stored, query, count, bits, low, high) for low, high in pairwise(cuts)]
    if parts == 1:
        return _scan_part(*work[0])
    found = list(_pool().map(lambda arguments: _scan_part(*arguments), work))
    return merged(found, count)


def _scan_part(
    stored: Stored, query: Scores, count: int, bits: npt.NDArray[np.uint8] | None, low: int, high: int
) -> Found:
    faiss = faiss_module()
    count = min(count, high - low)
    if count <= 0:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    selector = None
    if bits is not None:
        part = np.ascontiguousarray(bits[low // 8 : -(-high // 8)])
        selector = faiss.IDSelectorBitmap(part)
    metric = faiss.METRIC_INNER_PRODUCT
    scanner = _quantizer(stored.shape[1]).select_InvertedListScanner(metric, None, True, selector)
    query = np.ascontiguousarray(query, dtype=np.float32)
    scanner.set_query(faiss.swig_ptr(query))
    scanner.set_list(0, 0.0)
    codes = stored[low:high].view(np.uint8).reshape(-1)
    scores = np.full(count, -np.inf, np.float32)  # a heap, its smallest first
    rows = np.full(count, -1, np.int64)
    scanner.scan_codes(high - low, faiss.swig_ptr(codes), None, faiss.swig_ptr(scores), faiss.swig_ptr(rows), count)
    kept = rows >= 0
    return merged([(scores[kept], rows[kept] + low)], count)


@lru_cache(maxsize=8)
def _quantizer(width: int) -> Any:
    faiss = faiss_module()
    return faiss.ScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), thread_name_prefix="graftlm-index")


def _in_blocks(stored: Stored, queries: Scores, count: int, allowed: Mask | None, names: Rows | None) -> list[Found]:
    """Products a block at a time; `names`: the row that each of the given rows stands for."""
    found: list[list[Found]] = [[] for _ in queries]
    for start in range(0, len(stored), _BLOCK):
        block = stored[start : start + _BLOCK].astype(np.float32)
        blocked = None if allowed is None else ~allowed[start : start + _BLOCK]
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            scores = queries[first : first + _QUERIES_AT_ONCE] @ block.T  # (b, block)
            if blocked is not None:
                scores[:, blocked] = -np.inf
            for number, row in enumerate(scores, start=first):
                values, places = best(row, count)
                kept = values > -np.inf
                found[number].append((values[kept], places[kept] + start))
    answers = [merged(parts, count) for parts in found]
    return answers if names is None else [(values, names[places]) for values, places in answers]


def merged(parts: list[Found], count: int) -> Found:
    """The best of several answers; equal scores in the order of rows."""
    if not parts:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    scores = np.concatenate([part[0] for part in parts])
    rows = np.concatenate([part[1] for part in parts])
    order = np.lexsort((rows, -scores))[:count]
    return scores[order], rows[order]
