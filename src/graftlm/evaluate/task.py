"""What an evaluation task is: samples and a responder in, one row per sample and corpus metrics out."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from graftlm.data.sample import Sample
from graftlm.data.sentence import MediaPart, Sentence
from graftlm.errors import DataError, UsageError, unknown
from graftlm.evaluate.metrics.bootstrap import Interval
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being answered ("answers", "blind" ...), how many are done, and of how many."""

Control: TypeAlias = Callable[[Sequence[Sample], int], list[Sample]]
"""The same samples with what they show made useless, by a seed."""

Pooling: TypeAlias = Callable[[Sequence[MediaPart]], Tensor]
"""Pooled vectors (N, Dv) of media as a frozen encoder sees them, from the feature cache where there is one."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an evaluation is run; what is not said is the task's.

    Attributes:
        seed: of the bootstrap, the shuffled control and random choices
        beam: width of the search, where `decoding` is not given
        limit: at most this many samples, from the first on
        batch_size: sentences answered at once
        decoding: the whole search; None = the task's own with `beam`
        controls: names out of `controls.CONTROLS`; None = the task's
        resamples: of the bootstrap
        graft: name of what answers, for the report
        settings: what one task alone knows, by name
        support: samples that worked examples may be drawn from, for a task that shows some
        pooled: what tells which pictures are alike, for a task that compares them
    """

    seed: int = 0
    beam: int = 1
    limit: int | None = None
    batch_size: int = 16
    decoding: Decoding | None = None
    controls: tuple[str, ...] | None = None
    resamples: int = 1000
    graft: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    support: Sequence[Sample] = ()
    pooled: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Typed:
    """A setting that is not one of a few words.

    Attributes:
        default: as it would be typed
        expected: what a value is, in words, for the error
        read: the value of what was typed; raises ValueError where it is none
    """

    default: str
    expected: str
    read: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One sample's result.

    Attributes:
        scores: this sample alone, in percent; ranks count from 1
        prompt: the words before the answer
        found: keys of the samples whose pictures were found, best first
        sample: key of the sample that a row of another key belongs to
        asked: the sentence that was answered, where one was; a report does not keep it
    """

    key: str
    prediction: str
    references: tuple[str, ...]
    scores: Mapping[str, float]
    prompt: str = ""
    found: tuple[str, ...] = ()
    sample: str = ""
    asked: Sentence = field(default_factory=Sentence)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass over the samples gives; rates in percent. `headline`: this pass's, where the data decides on it."""

    rows: tuple[Row, ...]
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    headline: str = ""


class Task(ABC):
    """A way to question a responder; one file of `tasks/` each, found by its name.

    Class attributes:
        name: as on the command line, and the file's
        headline: the metric that best and worst samples are picked by; every row has it
        controls: which controls belong to it, see `controls.CONTROLS`
        own_controls: what its controls do where it shows no pictures, by name; empty: they are about pictures
        settings: what can be chosen for it alone (`Options.settings`): the words of each, the default first, or `Typed`
        makes_samples: whether it makes what it asks out of the data, or out of nothing: no data is needed then, and a
            limit is of what it makes
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled", "text-only")
    own_controls: ClassVar[Mapping[str, Control]] = {}
    settings: ClassVar[Mapping[str, tuple[str, ...] | Typed]] = {}
    makes_samples: ClassVar[bool] = False

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises: UsageError for a setting that the task does not have, or a value that it does not know."""
        for name, value in settings.items():
            if name not in self.settings:
                there = ", ".join(self.settings) or "none"
                raise UsageError(f"{self.name}: unknown setting '{name}' (there are: {there})")
            known = self.settings[name]
            if isinstance(known, Typed):
                self._read(name, str(value), known)
            elif value not in known:
                raise UsageError(f"{self.name}: setting '{name}': expected {' or '.join(known)}, found '{value}'")

    def chosen(self, settings: Mapping[str, Any], name: str) -> str:
        """A setting's word, or its default."""
        known = self.settings[name]
        return str(settings.get(name, known.default if isinstance(known, Typed) else known[0]))

    def value(self, settings: Mapping[str, Any], name: str) -> Any:
        """The value of a `Typed` setting. Raises: UsageError when it is none."""
        known = self.settings[name]
        assert isinstance(known, Typed)
        return self._read(name, self.chosen(settings, name), known)

    def _read(self, name: str, text: str, known: Typed) -> Any:
        try:
            return known.read(text)
        except ValueError:
            message = f"{self.name}: setting '{name}': expected {known.expected}, found '{text}'"
            raise UsageError(message) from None

    def support_split(self, settings: Mapping[str, Any]) -> str | None:
        """The split that `Options.support` is read from; None for a task that shows no worked examples."""
        return None

    def choose(self, samples: Sequence[Sample], options: Options) -> list[Sample]:
        """What is asked about: the first samples of the data, as many as the limit says.

        Asked twice it gives the same. Raises: DataError when there is none.
        """
        count = len(samples) if options.limit is None else min(options.limit, len(samples))
        if not count:
            raise DataError("evaluate: expected at least one sample, found none; check the data folder and the split")
        return [samples[number] for number in range(count)]

    def prepare(self, samples: Sequence[Sample], options: Options) -> Sequence[Sample]:
        """The sentences that are asked, the keys kept; controls change their pictures, and nothing else.

        Raises: UsageError, DataError when they cannot be made.
        """
        return samples

    def decoding(self, beam: int) -> Decoding:
        """The search to use when the options name none; a task that has nothing written keeps this."""
        return Decoding(num_beams=beam)

    @abstractmethod
    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """One pass over prepared samples: answers and scores. Called again with changed ones for each control.

        Raises: DataError when the samples lack what the task needs.
        """


def task_names() -> list[str]:
    """The tasks that exist: one file each in `tasks/`."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "tasks")]))


def find_task(name: str) -> Task:
    """The task of a name. Raises: UsageError for an unknown one, with the nearest."""
    names = task_names()
    if name not in names:
        raise UsageError(unknown("task", name, names))
    module = importlib.import_module(f"graftlm.evaluate.tasks.{name}")
    found = [item for item in vars(module).values() if isinstance(item, type) and getattr(item, "name", None) == name]
    task = found[0]()
    assert isinstance(task, Task)
    return task


def whole(default: int, low: int, high: int) -> Typed:
    """A setting that is one whole number."""
    return Typed(str(default), f"a whole number from {low} to {high}", lambda text: _number(text, low, high))


def numbers(default: str, low: int, high: int) -> Typed:
    """A setting that is one or several different whole numbers."""

    def read(text: str) -> tuple[int, ...]:
        found = tuple(_number(one, low, high) for one in text.split(","))
        if len(set(found)) < len(found):
            raise ValueError(text)
        return found

    return Typed(default, f"different whole numbers from {low} to {high}, as {default}", read)


def text(default: str = "") -> Typed:
    """A setting that is any text."""
    return Typed(default, "text", str)


def _number(text: str, low: int, high: int) -> int:
    found = int(text)
    if not low <= found <= high:
        raise ValueError(text)
    return found
