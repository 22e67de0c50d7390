"""What an evaluation found: numbers with intervals and controls, one row per sample, as JSON and as a page."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.data.sample import Sample
from graftlm.evaluate.metrics.bootstrap import Interval
from graftlm.evaluate.reading import AnswerReading
from graftlm.evaluate.task import Row

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one evaluation; rates in percent, times in seconds.

    Attributes:
        metrics, intervals: of the task itself, by the field's names
        controls: control -> metrics, of the same samples with the picture made useless
        baselines: other system -> its metrics on the same samples
        rows: one per sample, in the order of the data
        headline: the metric that best and worst samples are picked by
        notes: what was left out, and why
        config_hash: equal for evaluations of the same frozen parts, samples, search and seed
        answer_seconds: the task alone, without its controls
    """

    task: str
    graft: str
    n: int
    seed: int
    seconds: float
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    controls: Mapping[str, Mapping[str, float]]
    rows: tuple[Row, ...] = ()
    headline: str = ""
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    answer_seconds: float = 0.0
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What `graft evaluate --json` prints: task graft n seed seconds metrics intervals controls baselines notes."""
        return {
            "task": self.task,
            "graft": self.graft,
            "n": self.n,
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "metrics": _rounded(self.metrics),
            "intervals": {name: [round(end, _DIGITS) for end in ends] for name, ends in self.intervals.items()},
            "controls": {name: _rounded(values) for name, values in self.controls.items()},
            "baselines": {name: _rounded(values) for name, values in self.baselines.items()},
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, Any]:
        """The whole report, rows included."""
        return {
            **self.summary(),
            "answer_seconds": round(self.answer_seconds, 2),
            "config_hash": self.config_hash,
            "config": dict(self.config),
            "versions": dict(self.versions),
            "rows": [_row(row) for row in self.rows],
        }

    def best_first(self) -> list[Row]:
        """The rows by their headline metric, the best first."""
        return sorted(self.rows, key=lambda row: (row.scores.get(self.headline, 0.0), row.key), reverse=True)

    def drawn(self, count: int) -> list[Row]:
        """Rows drawn by the seed, at most `count`: nobody chose them."""
        return random.Random(self.seed).sample(self.best_first(), min(count, len(self.rows)))

    def save(
        self,
        path: Path,
        samples: Sequence[Sample],
        *,
        training: Sequence[Mapping[str, Any]] = (),
        readings: Sequence[AnswerReading] = (),
    ) -> Path:
        """Writes `path` (.json) with its rows and the page beside it (.html), and returns the page's path.

        Args:
            path: a file name; another ending than .json is replaced
            samples: those evaluated, for their pictures
            training: rows of a run's metrics.jsonl, for the curve
            readings: what some answers read, for their pictures
        """
        from graftlm.evaluate.page import page

        _write(path.with_suffix(".json"), json.dumps(self.to_json(), indent=1) + "\n")
        target = path.with_suffix(".html")
        _write(target, page(self, samples, training=training, readings=readings))
        return target


def _row(row: Row) -> dict[str, Any]:
    return {
        "key": row.key,
        "prompt": row.prompt,
        "prediction": row.prediction,
        "references": list(row.references),
        "scores": _rounded(row.scores),
        **({"found": list(row.found)} if row.found else {}),
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), _DIGITS) for name, value in values.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
