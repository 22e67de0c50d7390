"""`graft export`: writes a graft in the form of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def export() -> None:
    """Writes a graft in the form of another tool."""


@app.command()
def peft(
    graft: Annotated[str, typer.Argument(help="A prompt or prefix: ready-made name, folder, run or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder of the adapter to be written.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """As a peft adapter (prompt tuning or prefix tuning)."""
    import json

    from graftlm.grafts import load
    from graftlm.grafts.peft_adapters import export_peft

    system = load(graft)
    folder = export_peft(system, out)
    row = {"adapter": str(folder), "system": system.name}
    typer.echo(json.dumps(row) if as_json else f"{folder}: {system.name} as a peft adapter")
