"""What an evaluation task is: samples and a responder in, one row per sample and corpus metrics out."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from graftlm.data.sample import Sample
from graftlm.errors import UsageError, unknown
from graftlm.evaluate.metrics.bootstrap import Interval
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being answered ("answers", "blind" ...), how many are done, and of how many."""


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


@dataclass(frozen=True, slots=True)
class Row:
    """One sample's result.

    Attributes:
        scores: this sample alone, in percent; ranks count from 1
        prompt: the words before the answer
        found: keys of the samples whose pictures were found, best first
        sample: key of the sample that a row of another key belongs to
    """

    key: str
    prediction: str
    references: tuple[str, ...]
    scores: Mapping[str, float]
    prompt: str = ""
    found: tuple[str, ...] = ()
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass over the samples gives; rates in percent."""

    rows: tuple[Row, ...]
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Task(ABC):
    """A way to question a responder; one file of `tasks/` each, found by its name.

    Class attributes:
        name: as on the command line, and the file's
        headline: the metric that best and worst samples are picked by; every row has it
        controls: which controls belong to it, see `controls.CONTROLS`
        settings: what can be chosen for it alone (`Options.settings`), with the values of each, the default first
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled", "text-only")
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises: UsageError for a setting that the task does not have, or a value that it does not know."""
        for name, value in settings.items():
            if name not in self.settings:
                there = ", ".join(self.settings) or "none"
                raise UsageError(f"{self.name}: unknown setting '{name}' (there are: {there})")
            if value not in self.settings[name]:
                expected = " or ".join(self.settings[name])
                raise UsageError(f"{self.name}: setting '{name}': expected {expected}, found '{value}'")

    def chosen(self, options: Options, name: str) -> str:
        """The value of a setting, or its default."""
        return str(options.settings.get(name, self.settings[name][0]))

    def decoding(self, beam: int) -> Decoding:
        """The search to use when the options name none; a task that has nothing written keeps this."""
        return Decoding(num_beams=beam)

    @abstractmethod
    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """One pass: answers and scores. Called again with changed samples for each control.

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
