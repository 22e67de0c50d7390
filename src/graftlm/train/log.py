"""What a run tells: metrics.jsonl always, a tracker when asked for, bars on stderr."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from graftlm.errors import MissingExtraError

Tracker: TypeAlias = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name and the step they belong to."""

_PACKAGES = ("graftlm", "torch", "transformers", "accelerate", "safetensors", "numpy", "pillow", "tokenizers", "peft")


class MetricsLog:
    """metrics.jsonl: one JSON object a line, each with `event` and `step`."""

    def __init__(self, path: Path | None, *, resume_step: int | None = None, tracker: Tracker | None = None) -> None:
        """`path`: None writes nothing. `resume_step`: later lines, and one cut by a kill, are dropped; None: all."""
        self._path = path
        self._tracker = tracker
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(path)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Appends one line; numbers also go to the tracker as ``event/name``."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        if self._tracker is not None:
            self._tracker({f"{event}/{name}": value for name, value in _numbers(values)}, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; none when there is no file."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line a kill cut
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def open_tracker(name: str, run_folder: Path, recipe: Mapping[str, Any]) -> Tracker | None:
    """The tracker of a recipe's ``run.report_to``. Raises: MissingExtraError when its package is absent."""
    if name == "none":
        return None
    try:
        return _TRACKERS[name](run_folder, dict(recipe))
    except ImportError:
        raise MissingExtraError(name, "track", f"run.report_to: {name}") from None


def _tensorboard(run_folder: Path, recipe: dict[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_folder / "tensorboard"))

    def track(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _wandb(run_folder: Path, recipe: dict[str, Any]) -> Tracker:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    run = wandb.init(project="graftlm", name=run_folder.name, dir=str(run_folder), config=recipe, resume="allow")
    return lambda values, step: run.log(dict(values), step=step)


def _trackio(run_folder: Path, recipe: dict[str, Any]) -> Tracker:
    import trackio  # type: ignore[import-not-found,unused-ignore]

    trackio.init(project="graftlm", name=run_folder.name, config=recipe)
    return lambda values, step: trackio.log({**values, "step": step})


def _mlflow(run_folder: Path, recipe: dict[str, Any]) -> Tracker:
    import mlflow  # type: ignore[import-not-found,unused-ignore]

    mlflow.set_experiment("graftlm")
    mlflow.start_run(run_name=run_folder.name)
    return lambda values, step: mlflow.log_metrics(dict(values), step=step)


_TRACKERS: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


class Bar:
    """A progress bar on stderr with its rest of time; silent when `quiet` or where stderr is no terminal."""

    def __init__(self, title: str, total: float, *, quiet: bool) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._progress = Progress(*columns, console=self._console, disable=quiet)
        self._task: TaskID = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def move(self, completed: float, note: str = "") -> None:
        """Sets how much is done and what is written beside the bar."""
        self._progress.update(self._task, completed=completed, note=note)

    def say(self, line: str) -> None:
        """One line above the bar."""
        if not self._quiet:
            self._console.print(line, highlight=False, markup=False)

    def warn(self, line: str) -> None:
        """One line that is shown even when quiet."""
        self._console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on; no names, paths or variables of this machine."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
