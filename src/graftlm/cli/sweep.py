"""`graft sweep`: Compare methods on datasets over seeds, and write the table, the picture and the rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.errors import DataError

if TYPE_CHECKING:
    from graftlm.evaluate.sweeps import Summary
    from graftlm.train.sweep_recipe import SweepRecipe


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with the tables sweep common datasets methods.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As sweep.seeds=[0]; repeatable.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="As --set sweep.data=DIR.")] = None,
    only: Annotated[str | None, typer.Option(metavar="NAMES", help="These methods and datasets, as rte,ipt.")] = None,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where runs are kept; runs/<recipe>.")] = None,
    results: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the table goes.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Only write the tables of the runs there are.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare methods on datasets over seeds, and write the table, the picture and the rows."""
    import json

    from graftlm.evaluate.sweeps import summarise
    from graftlm.train.sweep_recipe import load_sweep

    changes = [*(overrides or []), *([f"sweep.data={data}"] if data else [])]
    asked = load_sweep(recipe, changes)
    asked = asked.only(name.strip() for name in only.split(",") if name.strip()) if only else asked
    place = folder or Path(asked.sweep.folder or Path("runs") / recipe.stem)
    rows, savings = _rows(asked, place, table=table, quiet=quiet)
    bases = {name: method.base for name, method in asked.methods.items()}
    summary = summarise(rows, bases, resamples=asked.sweep.resamples)
    command = _command(recipe, overrides or [], only)
    written = _write(results or Path(asked.sweep.results), recipe.stem, command, summary, rows, savings)
    if as_json:
        typer.echo(json.dumps(summary.to_json() | {"savings": savings}))
    else:
        typer.echo(written[0].read_text(encoding="utf-8"), nl=False)
    for path in written:
        typer.echo(f"written: {path}", err=True)


def _rows(
    asked: SweepRecipe, place: Path, *, table: bool, quiet: bool
) -> tuple[list[dict[str, Any]], Mapping[str, float]]:
    """The rows that are reported, run unless they are only to be shown, and what sharing saved."""
    from graftlm.train.sweep import ROWS, SweepRunner

    runner = SweepRunner(asked, place, quiet=quiet)
    if table:
        known = runner.known()
        if not known:
            raise DataError(
                f"{place / ROWS}: expected runs of this sweep, found none; leave out --table, or give the same "
                "--set and --data as when it ran"
            )
        return known, {}
    try:
        return runner.run(), runner.savings()
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on with the runs that are not in {place}", err=True)
        raise typer.Exit(130) from None


def _command(recipe: Path, overrides: Sequence[str], only: str | None) -> str:
    """What makes the same page again, but for where the data and the results lie."""
    more = ["--only", only] if only else []
    return shlex.join(["graft", "sweep", f"recipes/{recipe.name}", *more, *(f"--set={one}" for one in overrides)])


def _write(
    folder: Path,
    name: str,
    command: str,
    summary: Summary,
    rows: list[dict[str, Any]],
    savings: Mapping[str, float],
) -> list[Path]:
    """The page, the picture and the rows. Raises: DataError when nothing was run."""
    import json

    from graftlm.evaluate.sweep_page import drawing, page
    from graftlm.storage import replace_file

    if not summary.cells:
        raise DataError("sweep: expected at least one run that ended, found none; see the warnings above")
    paths = [folder / f"{name}{suffix}" for suffix in (".md", ".svg", ".jsonl")]
    title = name.replace("_", " ").capitalize()
    notes = (_saved(savings),) if savings else ()
    text = page(title, summary, command=command, notes=notes, picture=f"{name}.svg")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for path, content in zip(paths, (text, drawing(title, summary), lines), strict=True):
        replace_file(path, content.encode())
    return paths


def _saved(savings: Mapping[str, float]) -> str:
    return (
        f"Shared between the runs of the last call: frozen parts loaded {savings['parts_loaded']:.0f} times and used "
        f"{savings['parts_reused']:.0f} times again, data read {savings['data_read']:.0f} times and used "
        f"{savings['data_reused']:.0f} times again, every text encoded once; that saved "
        f"{savings['parts_and_tokens_saved_s'] + savings['data_saved_s']:.0f} s."
    )
