# ruff: noqa: N999 (the verb is called so)
"""`graft import`: turns weights that others have released into a graft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def import_() -> None:
    """Turns weights that others have released into a graft."""


@app.command()
def fromage(
    path: Annotated[Path, typer.Argument(help="Released checkpoint: .safetensors, or with --pickle a .pth.tar.")],
    out: Annotated[Path, typer.Argument(help="Folder of the graft to be written.")],
    lm: Annotated[str, typer.Option(help="Name, hub id or path of its language model.")] = "facebook/opt-6.7b",
    encoder: Annotated[
        str, typer.Option(help="Name, hub id or path of its encoder.")
    ] = "openai/clip-vit-large-patch14",
    precision: Annotated[str, typer.Option(help="Of the language model: float32, bfloat16, int8 or nf4.")] = "bfloat16",
    pickle: Annotated[
        bool, typer.Option("--pickle", help="Also read a pickle, of which only tensors are taken.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """FROMAGe's released weights, k = 1 or 4."""
    import json

    from graftlm.grafts import save
    from graftlm.grafts.released import import_fromage, read_released

    system = import_fromage(read_released(path, allow_pickle=pickle), lm=lm, encoder=encoder, precision=precision)
    folder = save(system, out)
    count = sum(parameter.numel() for _, parameter in system.trainable())
    row = {"graft": str(folder), "system": system.name, "parameters": count}
    typer.echo(json.dumps(row) if as_json else f"{folder}: {count} parameters imported")


@app.command()
def peft(
    path: Annotated[Path, typer.Argument(help="Folder of the adapter: adapter_config.json and its tensors.")],
    out: Annotated[Path, typer.Argument(help="Folder of the graft to be written.")],
    lm: Annotated[str, typer.Option(help="Name, hub id or path of its language model; else the adapter's own.")] = "",
    precision: Annotated[str, typer.Option(help="Of the language model: float32, bfloat16, int8 or nf4.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """A peft adapter: prompt tuning, P-tuning (as the prompt it wrote) or prefix tuning."""
    import json

    from graftlm.grafts import save
    from graftlm.grafts.peft_adapters import import_peft

    system = import_peft(path, lm=lm, precision=precision)
    folder = save(system, out)
    count = sum(parameter.numel() for _, parameter in system.trainable())
    row = {"graft": str(folder), "system": system.name, "parameters": count}
    typer.echo(json.dumps(row) if as_json else f"{folder}: {count} parameters imported")
