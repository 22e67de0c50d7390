"""METEOR and SPICE by the original Java programs, where Java and `pycocoevalcap` are found; never required.

METEOR (Denkowski and Lavie 2014) is spoken to line by line, as coco-caption does it; SPICE (Anderson et al. 2016,
arXiv:1607.08822) needs parser models that its package fetches on first use, so it runs only where they lie already.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

from graftlm.evaluate.metrics.ptb import tokenize

Groups: TypeAlias = list[list[str]]
_FAILURES = (ImportError, OSError, ValueError, KeyError, IndexError, AttributeError, subprocess.SubprocessError)
_METEOR = ("java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")


class _AbsentError(ValueError):
    """What a program needs is not on this machine."""


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
    """METEOR and SPICE in percent; a program that fails becomes a note."""
    why = missing()
    if why:
        return JavaScores(notes=(f"METEOR and SPICE left out: {why}",))
    spoken = [" ".join(tokenize(text)) for text in predictions]
    accepted = [[" ".join(tokenize(text)) for text in group] for group in references]
    metrics: dict[str, float] = {}
    notes: list[str] = []
    programs: dict[str, Callable[[list[str], Groups], float]] = {"METEOR": _meteor, "SPICE": _spice}
    for name, program in programs.items():
        try:
            metrics[name] = 100.0 * program(spoken, accepted)
        except _AbsentError as error:
            notes.append(f"{name} left out: {error}")
        except _FAILURES as error:
            notes.append(f"{name} left out: the Java program failed ({type(error).__name__}: {error})")
    return JavaScores(metrics, tuple(notes))


def _package() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise _AbsentError("the package 'pycocoevalcap' is gone")
    return Path(folders[0])


def _meteor(predictions: list[str], references: Groups) -> float:
    folder = _package() / "meteor"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(_METEOR, cwd=folder, text=True, encoding="utf-8", **pipes) as process:  # type: ignore[call-overload]
        given, answered = process.stdin, process.stdout
        assert given is not None
        assert answered is not None
        counted = []
        for text, group in zip(predictions, references, strict=True):
            counted.append(_ask(given, answered, ["SCORE", *map(_one_line, group), _one_line(text)]))
        _ask(given, answered, ["EVAL", *counted])  # the first photo's score; the corpus's comes after the last
        for _ in predictions[1:]:
            answered.readline()
        return float(answered.readline())


def _ask(given: IO[str], answered: IO[str], fields: list[str]) -> str:
    given.write(" ||| ".join(fields) + "\n")
    given.flush()
    return answered.readline().strip()


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", "").split())


def _spice(predictions: list[str], references: Groups) -> float:
    if not list((_package() / "spice" / "lib").glob("stanford-corenlp-*-models.jar")):
        raise _AbsentError("its parser models are not on this machine; fetch them with pycocoevalcap (about 400 MB)")
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    with contextlib.redirect_stdout(io.StringIO()):
        value, _ = scorer.compute_score(dict(enumerate(references)), {n: [text] for n, text in enumerate(predictions)})
    return float(value)
