"""What a sweep found: means and standard deviations over seeds, and which differences rows and seeds bear out.

A method is compared with its base on the same rows by the paired bootstrap (Efron and Tibshirani 1993, §15): rows and
seeds are both drawn anew, the same ones for both. Over several datasets the differences are averaged, each dataset
drawn by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftlm.evaluate.metrics.bootstrap import Interval, crossed_means, interval
from graftlm.evaluate.metrics.ngrams import Floats

MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one dataset; accuracies in percent.

    Attributes:
        by_seed: accuracy of every seed; hits: (seeds, rows) 1 where the answer was right
        majority: what the commonest class alone would score; ends: 95 % interval over rows and seeds
    """

    by_seed: Mapping[int, float]
    hits: Floats
    majority: float
    ends: Interval
    failed: int = 0

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(list(self.by_seed.values())))

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); 0 for one seed."""
        return float(np.std(list(self.by_seed.values()), ddof=1)) if len(self.by_seed) > 1 else 0.0

    @property
    def is_above_majority(self) -> bool:
        """Whether the whole interval lies above the commonest class."""
        return self.ends[0] > self.majority


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method over its base, in points of accuracy, with a two-sided p of the bootstrap."""

    method: str
    base: str
    dataset: str
    difference: float
    ends: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole sweep.

    Attributes:
        cells: by method and dataset; rates: parameters stored and touched, and seconds a run, by method
        choices: what was chosen on dev rows, by method and dataset
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    comparisons: tuple[Comparison, ...]
    rates: Mapping[str, Mapping[str, float]]
    choices: Mapping[tuple[str, str], Mapping[str, Any]]

    def majority(self, dataset: str) -> float:
        """What the commonest class alone scores on a dataset."""
        return next(cell.majority for (_, name), cell in self.cells.items() if name == dataset)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "majority": {dataset: round(self.majority(dataset), 2) for dataset in self.datasets},
            "cells": [
                {
                    "method": method,
                    "dataset": dataset,
                    "accuracy": round(cell.mean, 2),
                    "deviation": round(cell.deviation, 2),
                    "interval": [round(end, 2) for end in cell.ends],
                    "seeds": len(cell.by_seed),
                    "rows": cell.hits.shape[1],
                    "failed": cell.failed,
                    "above_majority": cell.is_above_majority,
                    "choice": dict(self.choices[method, dataset]),
                }
                for (method, dataset), cell in self.cells.items()
            ],
            "comparisons": [
                {
                    "method": one.method,
                    "base": one.base,
                    "dataset": one.dataset,
                    "difference": round(one.difference, 2),
                    "interval": [round(end, 2) for end in one.ends],
                    "p": round(one.p, 4),
                }
                for one in self.comparisons
            ],
            "rates": {method: dict(rates) for method, rates in self.rates.items()},
        }


def summarise(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, str], *, resamples: int = 2000) -> Summary:
    """Rows of a sweep as cells and comparisons; `bases`: method -> the one it is compared with.

    A dataset of which every run failed has nothing to show.
    """
    methods = tuple(dict.fromkeys(str(row["method"]) for row in rows))
    datasets = tuple(dict.fromkeys(str(row["dataset"]) for row in rows if row.get("test")))
    cells: dict[tuple[str, str], Cell] = {}
    choices: dict[tuple[str, str], Mapping[str, Any]] = {}
    for method in methods:
        for dataset in datasets:
            own = [row for row in rows if (row["method"], row["dataset"]) == (method, dataset)]
            good = sorted((row for row in own if row.get("test")), key=lambda row: int(row["seed"]))
            if good:
                cells[method, dataset] = _cell(good, len(own) - len(good), resamples)
                choices[method, dataset] = good[0]["choice"]
    pairs = [(method, bases[method]) for method in methods if bases.get(method)]
    found = [one for method, base in pairs for one in compared(cells, method, base, datasets, resamples=resamples)]
    rates = {method: _rates([row for row in rows if row["method"] == method and row.get("test")]) for method in methods}
    return Summary(methods, datasets, cells, tuple(found), rates, choices)


def compared(
    cells: Mapping[tuple[str, str], Cell], method: str, base: str, datasets: Sequence[str], *, resamples: int
) -> list[Comparison]:
    """A method over its base on every dataset that has both, with the same seeds, and on their mean."""
    found: list[Comparison] = []
    drawn: list[Floats] = []
    for dataset in datasets:
        if (method, dataset) not in cells or (base, dataset) not in cells:
            continue
        one, other = cells[method, dataset], cells[base, dataset]
        both = [seed for seed in one.by_seed if seed in other.by_seed]
        if not both or one.hits.shape[1] != other.hits.shape[1]:
            continue
        gaps = 100 * (_of_seeds(one, both) - _of_seeds(other, both))  # (seeds, rows)
        means = crossed_means(gaps, seed=len(found), resamples=resamples)
        drawn.append(means)
        found.append(Comparison(method, base, dataset, float(gaps.mean()), interval(means), two_sided(means)))
    if len(found) > 1:
        means = np.mean(drawn, axis=0)
        difference = float(np.mean([one.difference for one in found]))
        found.append(Comparison(method, base, MEAN, difference, interval(means), two_sided(means)))
    return found


def two_sided(means: Floats) -> float:
    """How often resampled differences fall on the other side of nothing, twice the rarer side, at most 1."""
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1))


def unpacked(row: Mapping[str, Any]) -> Floats:
    """Which answers of a run were right: (rows,) of 0 and 1."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), dtype=np.uint8))
    hits: Floats = bits[: int(row["n"])].astype(np.float64)
    return hits


def _cell(rows: Sequence[Mapping[str, Any]], failed: int, resamples: int) -> Cell:
    hits = np.stack([unpacked(row) for row in rows])  # (seeds, rows)
    by_seed = {int(row["seed"]): float(row["test"]["accuracy"]) for row in rows}
    ends = interval(100 * crossed_means(hits, resamples=resamples))
    return Cell(by_seed, hits, float(rows[0]["test"]["majority class"]), ends, failed)


def _of_seeds(cell: Cell, seeds: Sequence[int]) -> Floats:
    order = list(cell.by_seed)
    return cell.hits[[order.index(seed) for seed in seeds]]


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over runs."""
    names = ("stored", "touched", "train_s", "seconds")
    return {name: round(float(np.mean([row.get(name, 0) for row in rows])), 2) for name in names} if rows else {}
