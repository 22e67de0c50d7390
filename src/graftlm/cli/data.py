"""`graft data`: look a data set over before it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graftlm.data.check import CheckReport, Spread

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Looks a data set over before it is trained on."""


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="File, folder or hub id.")],
    reader: Annotated[str, typer.Option(help="Format; guessed from the path without it.")] = "",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the photos, if not beside the file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet (PNG); ./<name>_contact_sheet.png without.")] = None,
    bad_samples: Annotated[Path | None, typer.Option(help="Where to write every bad row (JSONL).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Count, decode every photo, show the first errors and draw a contact sheet; exit 1 if nothing is usable."""
    import json

    from graftlm.data.check import check as look_over
    from graftlm.data.ledger import Ledger

    given = {"path": path, "reader": reader, "split": split, "images": None if images is None else str(images)}
    spec = {name: value for name, value in given.items() if value}
    report = look_over(spec, limit=limit, sheet=sheet, ledger=Ledger(bad_samples))
    print(json.dumps(report.to_json(), ensure_ascii=False) if as_json else summary(report))
    if not report.is_usable:
        raise typer.Exit(1)


def summary(report: CheckReport) -> str:
    """The report in words, a line for each finding."""
    bad = sum(report.reasons.values())
    lines = [
        f"{report.path}  (reader {report.reader}, split {report.split or 'all'})",
        f"  samples    {report.samples:,}"
        + (f"  ({report.without_target:,} without words)" * bool(report.without_target)),
        f"  photos     {report.photos:,}{_splits(report)}"
        + f"  ({report.unreadable:,} unreadable)" * bool(report.unreadable),
        f"  per photo  {_spread(report.per_photo)}",
        f"  words      {_spread(report.words)}",
        f"  bad rows   {bad:,}" + "".join(f"\n    {count:,} {reason}" for reason, count in report.reasons.items()),
        *(f"    {error.place}: {error.message}" for error in report.errors),
        f"  equal      {report.equal:,} sets of equal photos, {report.leaks:,} of them across splits",
        *(f"    {'  =  '.join(group)}" for group in report.duplicates[:5]),
        f"  sheet      {report.sheet or 'none: no photo could be decoded'}",
        f"  took       {report.seconds:g} s",
    ]
    return "\n".join(lines)


def _splits(report: CheckReport) -> str:
    named = ", ".join(f"{name} {count:,}" for name, count in report.splits.items() if count)
    return f"  ({named})" if named else ""


def _spread(spread: Spread) -> str:
    return f"{spread.least:,} to {spread.greatest:,}, median {spread.median:g}, mean {spread.mean:g}"
