"""METEOR and SPICE through the original Java programs, where Java and `pycocoevalcap` are found; never required."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from graftlm.evaluate.metrics.ptb import tokenize

Captions: TypeAlias = dict[int, list[str]]
_FAILURES = (ImportError, OSError, ValueError, KeyError, IndexError, AttributeError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class JavaScores:
    """What could be computed, in percent, and in words what could not."""

    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def missing() -> str:
    """Why the Java metrics cannot run here; empty when they can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "needs the package 'pycocoevalcap'; run: pip install 'graftlm[eval]'"
    if shutil.which("java") is None:
        return "needs a Java runtime (8 or later) on the PATH"
    return ""


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> JavaScores:
    """METEOR, and SPICE where its parser models lie on this machine; a failure becomes a note."""
    why = missing()
    if why:
        return JavaScores(notes=(f"METEOR and SPICE left out: {why}",))
    hypotheses = {number: [" ".join(tokenize(text))] for number, text in enumerate(predictions)}
    accepted = {number: [" ".join(tokenize(text)) for text in group] for number, group in enumerate(references)}
    metrics: dict[str, float] = {}
    notes: list[str] = []
    for name, compute in (("METEOR", _meteor), ("SPICE", _spice)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                value = compute(accepted, hypotheses)
        except _FAILURES as error:
            notes.append(f"{name} left out: the Java program failed ({type(error).__name__}: {error})")
            continue
        if value is not None:
            metrics[name] = 100.0 * value
    return JavaScores(metrics, tuple(notes))


def _meteor(references: Captions, predictions: Captions) -> float:
    scorer = _scorer("meteor.meteor", "Meteor")()
    value, _ = scorer.compute_score(references, predictions)
    return float(value)


def _spice(references: Captions, predictions: Captions) -> float | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    folder = Path(next(iter(spec.submodule_search_locations or [""]))) / "spice" / "lib" if spec else Path()
    if not list(folder.glob("stanford-corenlp-*-models.jar")):
        return None  # the package would download 400 MB of parser models here
    value, _ = _scorer("spice.spice", "Spice")().compute_score(references, predictions)
    return float(value)


def _scorer(module: str, name: str) -> Callable[[], Any]:
    found: Callable[[], Any] = getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)
    return found
