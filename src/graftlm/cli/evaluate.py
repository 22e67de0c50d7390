"""`graft evaluate`: Score a graft on a task, with intervals and with its blind and shuffled controls beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graftlm.data.sample import Sample
    from graftlm.evaluate.report import Report
    from graftlm.evaluate.task import Progress
    from graftlm.systems.base import System


def evaluate(
    graft: Annotated[str, typer.Argument(help="Ready-made name, folder, run or hub id.")],
    task: Annotated[str, typer.Argument(help="captioning, exact ...; an unknown name lists all.")],
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder or file of the data.")],
    split: Annotated[str | None, typer.Option(help="train, val or test as the data names it; all without.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many samples, from the first on.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the shuffled control.")] = 0,
    beam: Annotated[int, typer.Option(min=1, max=64, help="Beams; 1 is greedy and quickest.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences answered at once.")] = 16,
    controls: Annotated[str | None, typer.Option(help="As blind,shuffled,text-only; 'none' for none.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write JSON with all rows, and the page, here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a graft on a task, with intervals and with its blind and shuffled controls beside it."""
    import json

    from graftlm.evaluate.run import evaluate as run
    from graftlm.evaluate.task import Options, find_task

    find_task(task)
    wanted = None if controls is None else tuple(name for name in controls.split(",") if name and name != "none")
    name = Path(graft).name if Path(graft).exists() else graft
    options = Options(seed=seed, beam=beam, limit=limit, batch_size=batch_size, controls=wanted, graft=name)
    samples = _samples(data, split, limit)
    system = _system(graft, samples)
    with _bar() as progress:
        found = run(system, task, samples, options, progress=progress)
    pages = _save(found, samples, graft, report)
    if as_json:
        typer.echo(json.dumps(found.summary()))
    else:
        _print(found)
    for page in pages:
        typer.echo(f"report: {page}", err=True)


def _samples(data: str, split: str | None, limit: int | None) -> Sequence[Sample]:
    from graftlm.data.ledger import Ledger
    from graftlm.data.readers import read_all

    ledger = Ledger()
    spec: dict[str, Any] = {"path": data, "per": "media"}
    spec |= {key: value for key, value in (("split", split), ("limit", limit)) if value is not None}
    samples = read_all(spec, ledger)
    if ledger.entries:
        typer.echo(f"{len(ledger.entries)} bad rows left out; 'graft data check {data}' shows them", err=True)
    return samples


def _system(graft: str, samples: Sequence[Sample]) -> System:
    """The graft, its frozen encoders reading the feature cache, which is filled first."""
    from graftlm.backbones import home
    from graftlm.encoders.base import Encoder
    from graftlm.features import CachedEncoder
    from graftlm.grafts import load

    system = load(graft)
    for modality, encoder in list(system.encoders.items()):
        assert isinstance(encoder, Encoder)
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            cached = CachedEncoder(encoder, home() / "features")
            media = [part for sample in samples for part in sample.sentence.prompt().media()]
            cached.build([part for part in media if type(part).__name__.lower() == modality])
            system.encoders[modality] = cached
    return system


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield move


def _save(found: Report, samples: Sequence[Sample], graft: str, target: Path | None) -> list[Path]:
    """Writes the report where asked, or beside the run that was evaluated; a mere graft leaves no file."""
    from graftlm.train.log import read_metrics

    run = Path(graft)
    log = next((folder / "metrics.jsonl" for folder in (run, run.parent) if (folder / "metrics.jsonl").is_file()), None)
    if target is None:
        if log is None:
            return []
        target = log.parent / "reports" / f"{found.task}.json"
    elif not target.suffix:
        target = target / f"{found.task}.json"
    return [found.save(target, samples, training=read_metrics(log) if log else ())]


def _print(found: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.graft}: {found.task}, n = {found.n}, seed {found.seed}, {found.seconds:.0f} s")
    for head in ("metric", "score", "95 % interval", *found.controls):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for name, value in found.metrics.items():
        ends = found.intervals.get(name)
        interval = f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""
        table.add_row(name, f"{value:.1f}", interval, *(_cell(values, name) for values in found.controls.values()))
    console = Console()
    console.print(table)
    for note in found.notes:
        console.print(note, style="dim", markup=False)


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.1f}" if name in values else ""
