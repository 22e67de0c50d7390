"""`graft evaluate`: Score a graft on a task, with intervals and with its blind and shuffled controls beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from graftlm.data.sample import Sample
    from graftlm.data.sentence import MediaPart
    from graftlm.evaluate.report import Report
    from graftlm.evaluate.task import Options, Pooling, Progress, Task
    from graftlm.lm.decode import Decoding
    from graftlm.systems.base import System


def evaluate(
    graft: Annotated[str, typer.Argument(help="Ready-made name, folder, run or hub id.")],
    task: Annotated[str, typer.Argument(help="captioning, exact ...; an unknown name lists all.")],
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder or file of the data.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test as the data names it; all without.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many samples, from the first on.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the shuffled control.")] = 0,
    beam: Annotated[int, typer.Option(min=1, max=64, help="Beams; 1 is greedy and quickest.")] = 3,
    length_penalty: Annotated[
        float | None, typer.Option(help="Power of the length a beam's score is divided by; below 1 shorter, 0 without.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences answered at once.")] = 16,
    controls: Annotated[str | None, typer.Option(help="As blind,shuffled,text-only; 'none' for none.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="GRAFT", help="Another graft for a column of the table; repeatable.")
    ] = None,
    shots: Annotated[str | None, typer.Option(help="Numbers of worked examples, as 0,4,8.")] = None,
    template: Annotated[str | None, typer.Option(help="Of a classification: dataset/name, or a YAML file.")] = None,
    select: Annotated[str | None, typer.Option(help="Worked examples: random, fixed or rices (the nearest).")] = None,
    support: Annotated[str | None, typer.Option(metavar="SPLIT", help="Where worked examples come from.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The task's own, as compat=official.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write JSON with all rows, and the page, here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a graft on a task, with intervals and with its blind and shuffled controls beside it."""
    import json

    from graftlm.evaluate.controls import check_controls
    from graftlm.evaluate.run import evaluate as run
    from graftlm.evaluate.task import Options, find_task

    asked = find_task(task)
    if data is None and not asked.makes_samples:
        raise UsageError(f"{task}: expected data, found none; name its folder or file with --data")
    named = {"shots": shots, "select": select, "support": support, "template": template}
    named["split"] = None if data else split
    settings = {key: value for key, value in named.items() if value is not None} | _settings(changes or ())
    asked.check(settings)
    target = _target(graft, task, report)
    wanted = None if controls is None else tuple(name for name in controls.split(",") if name and name != "none")
    check_controls(wanted or ())
    decoding = _penalised(asked, beam, length_penalty)
    options = Options(seed, beam, limit, batch_size, decoding, wanted, graft=_name(graft), settings=settings)
    found = _samples(data, split, None if asked.makes_samples else limit, template) if data else ()
    samples = asked.choose(found, options)
    options = _with_support(options, asked, data)
    system = _system(graft, samples)
    options = replace(options, pooled=_pooled(system, settings.get("encoder", "")))
    others = {_name(other): _system(other, samples) for other in beside or ()}
    with _bar() as progress:
        result = run(system, task, samples, options, beside=others, progress=progress)
    pages = _save(result, samples, graft, target, system)
    if as_json:
        typer.echo(json.dumps(result.summary()))
    else:
        _print(result)
    for page in pages:
        typer.echo(f"report: {page}", err=True)


def _penalised(task: Task, beam: int, length_penalty: float | None) -> Decoding | None:
    """The task's own search with another length penalty. Raises: UsageError where there are no beams to compare."""
    if length_penalty is None:
        return None
    decoding = task.decoding(beam)
    if decoding.num_beams == 1:
        raise UsageError("--length-penalty: expected a search with beams, which are compared by it; set --beam 3")
    return replace(decoding, length_penalty=length_penalty)


def _settings(changes: Sequence[str]) -> dict[str, str]:
    pairs = [change.partition("=") for change in changes]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UsageError(f"--set {key}{equals}{value}: expected KEY=VALUE, for example --set compat=official")
    return {key: value for key, _, value in pairs}


def _name(graft: str) -> str:
    """What a report calls a graft: its folder's name, or its run's."""
    path = Path(graft)
    if not path.exists():
        return graft
    return path.resolve().parent.name if path.name == "graft" else path.name


def _with_support(options: Options, task: Task, data: str | None) -> Options:
    """The options with the samples that worked examples are drawn from, where the task shows some."""
    split = task.support_split(options.settings)
    if split is None or data is None:
        return options
    return replace(options, support=_samples(data, split, None))


def _pooled(system: System, name: str) -> Pooling | None:
    """What compares pictures: the encoder or graft of that name, or the graft's own encoder, through the feature cache.

    Raises: UsageError for one that cannot compare pictures; BackboneError for one that cannot be used.
    """
    from graftlm.backbones import home, load_encoder
    from graftlm.encoders.base import Encoder
    from graftlm.features import CachedEncoder
    from graftlm.grafts import is_graft
    from graftlm.systems.base import embed_in_batches

    if name and is_graft(name):
        return _compared_by(name)
    if not name and "image" not in system.encoders:
        return None
    encoder = load_encoder(name) if name else system.encoders["image"]
    assert isinstance(encoder, Encoder)
    if encoder.modality != "image":
        raise UsageError(f"encoder={name}: expected one that reads image, found one that reads {encoder.modality}")
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        # trained with the graft: no cache keeps what it sees
        return partial(embed_in_batches, embed=encoder.pool, width=encoder.dim, length=lambda _: 0)
    cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder, home() / "features")
    return partial(_built_first, cached, cached.pool)


def _compared_by(graft: str) -> Pooling:
    """What a graft that finds pictures compares. Raises: UsageError for one that finds none."""
    from graftlm.systems.base import Retriever

    found = _system(graft, ())
    if not isinstance(found, Retriever) or "image" not in found.encoders:
        raise UsageError(f"encoder={graft}: expected an encoder or a graft that finds pictures, found '{found.name}'")
    return partial(_built_first, found.encoders["image"], found.embed_media)


def _built_first(encoder: Module, pool: Pooling, media: Sequence[MediaPart]) -> Tensor:
    """Vectors by `pool`; what a cache below lacks is encoded first, in several threads and with a bar."""
    from graftlm.features import CachedEncoder

    if isinstance(encoder, CachedEncoder) and len(media) > 1:
        encoder.build(media)
    return pool(media)


def _samples(data: str, split: str | None, limit: int | None, template: str | None = None) -> Sequence[Sample]:
    from graftlm.data.ledger import Ledger
    from graftlm.data.readers import read_all

    ledger = Ledger()
    spec: dict[str, Any] = {"path": data, "per": "media"}
    spec |= {key: value for key, value in (("split", split), ("limit", limit)) if value is not None}
    if template is not None:
        spec |= {"reader": "labelled", "template": template}
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
            media = [part for sample in samples for part in sample.sentence.media()]
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


def _save(found: Report, samples: Sequence[Sample], graft: str, target: Path | None, system: System) -> list[Path]:
    """Writes the report where there is a place for it.

    Its page shows the curve of the run that was evaluated, and what a few answers read where the system tells that:
    one more pass for each of them.
    """
    from graftlm.evaluate.page import SHOWN
    from graftlm.evaluate.reading import read_again
    from graftlm.train.log import read_metrics

    if target is None:
        return []
    log = _log_of(graft)
    readings = read_again(system, found.drawn(SHOWN))
    return [found.save(target, samples, training=read_metrics(log) if log else (), readings=readings)]


def _log_of(graft: str) -> Path | None:
    run = Path(graft)
    return next(
        (folder / "metrics.jsonl" for folder in (run, run.parent) if (folder / "metrics.jsonl").is_file()), None
    )


def _target(graft: str, task: str, report: Path | None) -> Path | None:
    """Where the report goes: where asked, or beside the run that is evaluated; a mere graft leaves no file.

    Raises: UsageError for a file of another kind; DataError where nothing can be written. Hours of answers come after.
    """
    log = _log_of(graft)
    if report is None and log is None:
        return None
    target = report or (log.parent if log else Path()) / "reports"
    target = target if target.suffix else target / f"{task}.json"
    if target.suffix not in (".json", ".html") or target.is_dir():
        raise UsageError(f"--report: expected a folder or a .json file, found {target.name}; give another path")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            return target
    except OSError as error:
        raise DataError(f"--report {target}: cannot be written ({error.strerror}); choose another place") from None


def _print(found: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.graft}: {found.task}, n = {found.n}, seed {found.seed}, {found.seconds:.0f} s")
    for head in ("metric", "score", "95 % interval", *found.baselines, *found.controls):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for name, value in found.metrics.items():
        ends = found.intervals.get(name)
        interval = f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""
        others = (*found.baselines.values(), *found.controls.values())
        table.add_row(name, f"{value:.1f}", interval, *(_cell(values, name) for values in others))
    console = Console()
    console.print(table)
    for note in found.notes:
        console.print(note, style="dim", markup=False)


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.1f}" if name in values else ""
