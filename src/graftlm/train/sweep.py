"""Methods x datasets x seeds, one after the other in one process, resumable; what runs have in common is done once.

Hyper-parameters are chosen by rows carved out of the training data. The reported rows are asked once, when a method's
choice is made. Every run is one line of `rows.jsonl`; a run that has its line is not run again, and one that was killed
goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftlm.config import Recipe
from graftlm.data.ledger import Ledger
from graftlm.data.readers import Dataset, by_number, read
from graftlm.data.sample import Sample
from graftlm.errors import ConfigError, GraftError
from graftlm.systems.base import System
from graftlm.train.log import Bar
from graftlm.train.setup import prepare
from graftlm.train.sweep_recipe import (
    Job,
    SweepRecipe,
    best_choice,
    choices,
    digest,
    job,
    methods_of,
    plan,
    pretraining,
    seeds_of,
)
from graftlm.train.trainer import Trainer, train
from graftlm.train.validate import spread

if TYPE_CHECKING:
    from graftlm.evaluate.report import Report

ROWS = "rows.jsonl"


class SharedReading:
    """Opens every spec once. Attributes: reads, reuses, seconds (of reading)."""

    def __init__(self) -> None:
        self._kept: dict[str, Dataset] = {}
        self.reads, self.reuses, self.seconds = 0, 0, 0.0

    @property
    def saved_s(self) -> float:
        """Seconds that reading again would have taken."""
        return self.reuses * self.seconds / max(1, self.reads)

    def __call__(self, spec: Mapping[str, Any], ledger: Ledger) -> Dataset:
        """The samples of a spec; bad rows are told to the ledger of the first who asks."""
        key = json.dumps(dict(spec), sort_keys=True, default=str)
        if key in self._kept:
            self.reuses += 1
            return self._kept[key]
        start = time.perf_counter()
        self._kept[key] = list(by_number(read(spec, ledger), spec))  # sentences are made once, too
        self.seconds += time.perf_counter() - start
        self.reads += 1
        return self._kept[key]

    def forget(self) -> None:
        """Lets go of what was read."""
        self._kept.clear()


class SweepRunner:
    """Runs a sweep in its folder.

    Args:
        quiet: no bar
    """

    def __init__(self, sweep: SweepRecipe, folder: Path, *, quiet: bool = False) -> None:
        from graftlm.backbones import SharedParts

        self.sweep = sweep
        self.folder = folder
        self.parts = SharedParts()
        self.reading = SharedReading()
        self._grafts: dict[str, Path] = {}
        self._rows = {row["id"]: row for row in read_rows(folder / ROWS)}
        self._bar = Bar("sweep", 1.0, quiet=quiet)
        self._done = 0
        self._total = sum(count for _, _, count in plan(sweep))

    def run(self) -> list[dict[str, Any]]:
        """All rows of the sweep that are reported, in the order of datasets, methods and seeds.

        Raises: KeyboardInterrupt when it was stopped: what is done is kept; ConfigError; what `Trainer.run` raises, but
            a loss that is no longer finite, which is a failed run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, Any]] = []
        self._look_ahead()
        with self._bar:
            self._grafts = {name: self._pretrained(name) for name in self.sweep.pretrained}
            for dataset in self.sweep.datasets:
                for method in methods_of(self.sweep, dataset):
                    found += self._cell(dataset, method)
                self.reading.forget()
        return found

    def _look_ahead(self) -> None:
        """Builds every recipe and reads every dataset that has no row: what is wrong with the last one is told first.

        Raises: ConfigError; DataError.
        """
        grafts = {name: self.folder / "pretrained" / name for name in self.sweep.pretrained}
        for name in self.sweep.pretrained:
            pretraining(self.sweep, name)
        begun = {row.get("dataset") for row in self._rows.values()}
        for dataset in self.sweep.datasets:
            seed, methods = self.sweep.sweep.seeds[0], methods_of(self.sweep, dataset)
            for method in methods:
                for choice in choices(self.sweep.methods[method]):
                    each = job(self.sweep, dataset, method, seed, choice, grafts)
            if methods and dataset not in begun:
                for spec in (each.recipe.data.train, each.recipe.data.val or {}, each.test):
                    read(spec, Ledger())

    def known(self) -> list[dict[str, Any]]:
        """The rows of this very sweep that were reported so far, or failed; nothing is run. Raises: ConfigError."""
        self._grafts = {name: self._begun(name)[1] / "graft" for name in self.sweep.pretrained}
        found: list[dict[str, Any]] = []
        for dataset in self.sweep.datasets:
            for method in methods_of(self.sweep, dataset):
                tried = [self._rows.get(each.id) for each in self._tried(dataset, method)]
                done = [row for row in tried if row is not None]
                if len(done) < len(tried):
                    continue
                chosen = best_choice(done) if done else choices(self.sweep.methods[method])[0]
                ids = [self._job(dataset, method, seed, chosen).id for seed in seeds_of(self.sweep, method)]
                rows = [self._rows[one] for one in ids if one in self._rows]
                found += self._for_all_seeds(method, [row for row in rows if row.get("test") or row.get("failed")])
        return found

    def savings(self) -> dict[str, float]:
        """Seconds that sharing has saved so far, and how much is shared."""
        return {
            "parts_loaded": self.parts.loads,
            "parts_reused": self.parts.reuses,
            "parts_and_tokens_saved_s": round(self.parts.saved_s, 2),
            "data_read": self.reading.reads,
            "data_reused": self.reading.reuses,
            "data_saved_s": round(self.reading.saved_s, 2),
        }

    def _cell(self, dataset: str, method: str) -> list[dict[str, Any]]:
        """One method on one dataset: the choice by dev rows, then every seed with it."""
        tried = self._tried(dataset, method)
        chosen = choices(self.sweep.methods[method])[0]
        if tried:
            chosen = best_choice([self._one(each, report=False) for each in tried])
        seeds = seeds_of(self.sweep, method)
        rows = [self._one(self._job(dataset, method, seed, chosen), report=True) for seed in seeds]
        for each in tried:
            self._tidy(each)
        return self._for_all_seeds(method, rows)

    def _tried(self, dataset: str, method: str) -> list[Job]:
        """The runs among which a method's choice is made; none where there is nothing to choose."""
        options, seeds = choices(self.sweep.methods[method]), self.sweep.sweep.tune_seeds
        return [self._job(dataset, method, seed, one) for one in options for seed in seeds] if len(options) > 1 else []

    def _for_all_seeds(self, method: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a method; where nothing is drawn, its one row for every seed. Raises: ConfigError."""
        if self.sweep.methods[method].draws:
            return list(rows)
        if any(row.get("steps") for row in rows):
            raise ConfigError(f"sweep: methods.{method}.draws: expected true for a method that is trained, found false")
        return [{**row, "seed": seed} for row in rows for seed in self.sweep.sweep.seeds]

    def _pretrained(self, name: str) -> Path:
        """The graft that methods begin with, trained unless it is there."""
        recipe, place = self._begun(name)
        if not (place / "graft" / "graft.json").is_file():
            self._bar.move(0.0, f"pretraining {name}")
            train(recipe, run_folder=place, quiet=True)
        return place / "graft"

    def _begun(self, name: str) -> tuple[Recipe, Path]:
        """How what methods begin with is trained, and where."""
        recipe = pretraining(self.sweep, name)
        return recipe, self.folder / "pretrained" / f"{name}-{digest(recipe)}"

    def _job(self, dataset: str, method: str, seed: int, choice: Mapping[str, Any]) -> Job:
        return job(self.sweep, dataset, method, seed, choice, self._grafts)

    def _one(self, each: Job, *, report: bool) -> dict[str, Any]:
        """The row of one run, which is run unless it is there; `report`: the reported rows are asked, too."""
        row = self._rows.get(each.id)
        if row is None or (report and not row.get("test") and not row.get("failed")):
            self._bar.move(self._done / self._total, f"{each.dataset} {each.method} seed {each.seed}")
            earlier = 0.0 if row is None else float(row["seconds"])
            row = self._run(each, report=report)
            row["seconds"] = round(row["seconds"] + earlier, 2)
            self._rows[each.id] = row
            _append(self.folder / ROWS, row)
        if report:
            self._tidy(each)
        self._done += 1
        self._bar.move(self._done / self._total, f"{each.dataset} {each.method} seed {each.seed}")
        return row

    def _run(self, each: Job, *, report: bool) -> dict[str, Any]:
        start = time.perf_counter()
        row: dict[str, Any] = {
            "id": each.id,
            "dataset": each.dataset,
            "method": each.method,
            "seed": each.seed,
            "choice": dict(each.choice),
            "dev": {},
        }
        try:
            system, numbers = self._trained(each)
            row |= numbers
            val = each.recipe.data.val
            assert val is not None
            row["dev"] = dict(self._asked(system, each, val, limit=each.recipe.evaluate.limit).metrics)
            if report:
                found = self._asked(system, each, each.test)
                hits = np.array([bool(one.scores["accuracy"]) for one in found.rows])
                row |= {"test": dict(found.metrics), "n": len(hits), "hits": np.packbits(hits).tobytes().hex()}
        except GraftError as error:
            if type(error) is not GraftError:  # what a user can mend stops the sweep
                raise
            row["failed"] = str(error)
            self._bar.warn(f"{each.id}: {error}")
        row["seconds"] = time.perf_counter() - start
        return row

    def _trained(self, each: Job) -> tuple[System, dict[str, Any]]:
        """The system of a run, trained where there is something to train, and the numbers of its training."""
        folder = self._place(each)
        shared: dict[str, Any] = {"load": self.parts, "reading": self.reading}
        with prepare(each.recipe, folder, resume=False, quiet=True, **shared) as run:
            if not any(True for _ in run.system.trainable()):
                return run.system.eval(), {"steps": 0, "train_s": 0.0, "stored": 0, "touched": 0}
            result = Trainer(run.system, run.recipe, run.folder, run.source, run.validation, quiet=True).run()
            counts = run.system.parameter_counts()
            return run.system, {"steps": result.steps, "train_s": round(result.seconds, 2), **counts}

    def _asked(self, system: System, each: Job, spec: Mapping[str, Any], limit: int = 0) -> Report:
        """The classification of a spec's rows, evenly spread where there is a limit, without controls."""
        from graftlm.evaluate.run import evaluate
        from graftlm.evaluate.task import Options

        samples: Sequence[Sample] = by_number(self.reading(spec, Ledger()), spec)
        samples = [samples[place] for place in spread(len(samples), limit)]
        size = each.recipe.train.batch_size
        options = Options(batch_size=size, controls=(), resamples=1, graft=each.id, settings=each.settings)
        return evaluate(system, "classification", samples, options)

    def _place(self, each: Job) -> Path:
        return self.folder / "runs" / each.id

    def _tidy(self, each: Job) -> None:
        """Leaves the numbers of a run, and its graft where grafts are kept."""
        place = self._place(each)
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        if not self.sweep.sweep.keep_grafts:
            shutil.rmtree(place / "graft", ignore_errors=True)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Writes a line, on a line of its own where a kill has cut the one before."""
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a sweep's rows, the last of each run; none when there is no file."""
    if not path.is_file():
        return []
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line a kill cut
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            rows[row["id"]] = row
    return list(rows.values())
