"""One evaluation: a task, its controls by the same code on changed sentences, intervals, and where it all came from."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

from graftlm.data.sample import Sample
from graftlm.errors import GraftError, UsageError
from graftlm.evaluate.controls import CONTROLS, check_controls, shows_pictures
from graftlm.evaluate.report import Report
from graftlm.evaluate.task import Options, Progress, Task, find_task
from graftlm.systems.base import Responder

_PACKAGES = ("graftlm", "torch", "transformers", "numpy", "pillow")


def evaluate(
    responder: Responder,
    task_name: str,
    samples: Sequence[Sample],
    options: Options | None = None,
    *,
    beside: Mapping[str, Responder] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Asks `responder` every sample, and again for each control, and scores the answers.

    `beside`: other systems by name, asked the same samples; their metrics are the report's baselines.
    Raises: UsageError for an unknown task or control; DataError when there is no sample or one lacks its references.
    """
    options = options or Options()
    task = find_task(task_name)
    task.check(options.settings)
    _check(options)
    chosen = task.choose(samples, options)
    asked = task.prepare(chosen, options)
    tell = progress or _silent
    start = time.perf_counter()
    outcome = task.run(responder, asked, options, tell)
    answered = time.perf_counter()
    controls, notes = _controls(task, responder, asked, options, tell)
    baselines = {
        name: task.run(other, asked, replace(options, resamples=1), _renamed(tell, name)).metrics
        for name, other in (beside or {}).items()
    }
    config = _config(task, responder, chosen, options)
    return Report(
        task=task.name,
        graft=options.graft,
        n=len(chosen),
        seed=options.seed,
        seconds=time.perf_counter() - start,
        metrics=outcome.metrics,
        intervals=outcome.intervals,
        controls=controls,
        rows=outcome.rows,
        headline=outcome.headline or task.headline,
        notes=(*outcome.notes, *notes),
        config=config,
        config_hash=_hash(config),
        versions=versions(),
        answer_seconds=answered - start,
        baselines=baselines,
    )


def _check(options: Options) -> None:
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"limit: expected at least 1 sample, found {options.limit}")
    if options.batch_size < 1 or options.beam < 1:
        raise UsageError(f"expected batch size and beam of at least 1, found {options.batch_size} and {options.beam}")
    check_controls(options.controls or ())  # before hours of answers, not after them


def _controls(
    task: Task, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress
) -> tuple[dict[str, Mapping[str, float]], list[str]]:
    wanted = task.controls if options.controls is None else options.controls
    known = task.own_controls or CONTROLS
    if wanted and not task.own_controls and not shows_pictures(samples):
        return {}, ["no controls: the prompts show no picture or film"]
    found: dict[str, Mapping[str, float]] = {}
    notes: list[str] = []
    for name in wanted:
        if name not in known:
            notes.append(f"{name} control left out: {task.name} has {', '.join(known)}")
            continue
        try:
            changed = known[name](samples, options.seed)
            outcome = task.run(responder, changed, replace(options, resamples=1), _renamed(progress, name))
        except GraftError as error:
            notes.append(f"{name} control left out: {error}")
            continue
        found[name] = outcome.metrics
    return found, notes


def _renamed(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(name if stage == "answers" else f"{name} {stage}", done, total)


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def _config(task: Task, responder: Responder, samples: Sequence[Sample], options: Options) -> dict[str, Any]:
    decoding = options.decoding or task.decoding(options.beam)
    fingerprints: Mapping[str, str] = getattr(responder, "fingerprints", dict)()
    return {
        "task": task.name,
        "graft": options.graft,
        "seed": options.seed,
        "decoding": asdict(decoding),
        "settings": dict(options.settings),
        "samples": _named(samples),
        **({"support": _named(options.support)} if options.support else {}),
        "frozen_parts": dict(fingerprints),
    }


def _named(samples: Sequence[Sample]) -> dict[str, Any]:
    keys = "\n".join(sample.key for sample in samples)
    return {"n": len(samples), "keys_sha256": hashlib.sha256(keys.encode()).hexdigest()}


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
