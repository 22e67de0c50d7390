"""`graft train`: Train a graft by a recipe, or go on where a run was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file with the tables system data train evaluate run.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one value; repeatable.")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Show the recipe with every default, and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on a checkpoint to go on from.")] = False,
    max_minutes: Annotated[float | None, typer.Option(help="As --set train.max_minutes=M.", min=0)] = None,
    run_folder: Annotated[Path | None, typer.Option(help="Where the run is kept; runs/<recipe> without.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a graft by a recipe, or go on where a run was stopped."""
    from graftlm.train.setup import read_recipe

    changes = list(overrides or [])
    if max_minutes is not None:
        changes.append(f"train.max_minutes={max_minutes}")
    resolved = read_recipe(recipe, changes)
    if show:
        typer.echo(resolved.to_yaml(described=True), nl=False)
        return
    folder = run_folder or Path(resolved.run.folder or Path("runs") / recipe.stem)
    _run(resolved, folder, resume=resume, quiet=quiet, as_json=as_json)


def _run(resolved: object, folder: Path, *, resume: bool, quiet: bool, as_json: bool) -> None:
    import json
    import os

    from graftlm.config import Recipe
    from graftlm.train.trainer import train as run

    assert isinstance(resolved, Recipe)
    try:
        result = run(resolved, run_folder=folder, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from the newest checkpoint in {folder}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        return
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    loss = f", validation loss {result.best['value']:.3f} at step {result.best['step']}" if result.best else ""
    typer.echo(f"{result.steps} steps, {result.captions_per_s:.1f} captions/s{loss}")
    typer.echo(f"frozen parts unchanged ({result.frozen_fingerprint[:12]}); graft: {result.graft}")
