"""`graft demo`: captions photos, trains a graft from nothing on generated scenes, and shows what it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Bound of the training alone, in minutes; else the recipe's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes, the weights and the order.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Held-out scenes to answer.")] = 200,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe over the reader 'scenes'.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="table.key=value of the recipe.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the run and its report go.")] = Path("runs/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Captions photos, trains a graft from nothing on generated scenes, and shows what it learnt (minutes)."""
    import json

    from graftlm.demo.report import print_outcome, write_report
    from graftlm.demo.run import Options, run

    options = Options(minutes, seed, limit, recipe, tuple(changes or ()), folder)
    outcome = run(options, say=lambda line: typer.echo(line, err=as_json))
    page = write_report(outcome, outcome.training.folder / "reports" / "demo.html")
    if as_json:
        typer.echo(json.dumps({**outcome.to_json(), "report": str(page.resolve())}, ensure_ascii=False))
        return
    print_outcome(outcome)
    typer.echo(f"Report: {page.resolve()}")
