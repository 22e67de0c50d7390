"""`graft systems`: lists the published systems and the fields of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graftlm.errors import UsageError, unknown


def systems(
    name: Annotated[str | None, typer.Argument(help="One system: its idea, its fields, its deviations.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Lists the published systems; with a NAME, what can be set in its recipe."""
    import json

    from graftlm.papers import papers

    found = {paper.name: paper for paper in papers()}
    if name is None:
        rows = [paper.to_json() for paper in found.values()]
        typer.echo(json.dumps({"systems": rows}, ensure_ascii=False) if as_json else _table(rows))
        return
    if name not in found:
        raise UsageError(unknown("system", name, found))
    from graftlm.systems.base import system_class

    fields = _fields(system_class(name).Config.model_fields)
    paper = found[name]
    if as_json:
        typer.echo(json.dumps({**paper.to_json(), "fields": fields}, ensure_ascii=False))
        return
    typer.echo(f"{paper.title}\n{paper.authors}. {paper.venue}. {paper.url}\n\n{paper.idea}\n")
    typer.echo("Fields (system: in a recipe)")
    for row in fields:
        typer.echo(f"  {row['field']:<18} {row['default']!s:<20} {row['description']}")
    typer.echo("\nDifferences from the paper")
    for difference in paper.differences:
        typer.echo(f"  - {difference}")


def _table(rows: list[dict[str, Any]]) -> str:
    width = max((len(row["name"]) for row in rows), default=0)
    return "\n".join(f"{row['name']:<{width}}  {row['title']}  ({row['venue']}, arXiv:{row['arxiv']})" for row in rows)


def _fields(fields: Any) -> list[dict[str, Any]]:
    return [
        {"field": name, "default": field.get_default(), "description": field.description}
        for name, field in fields.items()
    ]
