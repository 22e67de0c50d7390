"""`graft data`: look a data set over before it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The reader's own, as photos=[4,4].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Count, decode every photo, show the first errors and draw a contact sheet; exit 1 if nothing is usable."""
    import json

    from graftlm.data.check import check as look_over
    from graftlm.data.ledger import Ledger

    spec = _spec(path, reader, split, images, changes or ())
    report = look_over(spec, limit=limit, sheet=sheet, ledger=Ledger(bad_samples))
    print(json.dumps(report.to_json(), ensure_ascii=False) if as_json else summary(report))
    if not report.is_usable:
        raise typer.Exit(1)


@app.command("related")
def related(
    path: Annotated[str, typer.Argument(help="Captioned photos: file, folder or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the neighbours (JSONL).")],
    encoder: Annotated[
        str, typer.Option(help="What compares the photos: name, hub id or path.")
    ] = "efficientnet-lite0",
    reader: Annotated[str, typer.Option(help="Format; guessed from the path without it.")] = "",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the photos, if not beside the file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Neighbours of each photo.")] = 64,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The reader's own, as tidy=true.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the photos that look most like each photo, for documents of related photos (reader albums)."""
    import json

    from graftlm.backbones import load_encoder
    from graftlm.data.media import content_hash
    from graftlm.data.readers import read_all
    from graftlm.data.related import find_related, write_related
    from graftlm.features import CachedEncoder

    samples = read_all({**_spec(path, reader, split, images, changes or ()), "per": "media"})
    photos = {sample.key: media[0] for sample in samples if (media := sample.sentence.media())}
    cached = CachedEncoder(load_encoder(encoder))
    stats = cached.build(list(photos.values()), quiet=quiet)
    keys = [key for place, key in enumerate(photos) if place not in stats.bad]
    for place, error in sorted(stats.bad.items()):
        typer.echo(f"{place + 1}: {error}", err=True)
    contents = [content_hash(photos[key]) for key in keys]
    vectors = cached.pool([photos[key] for key in keys]).float().numpy()
    found = find_related(keys, contents, vectors, count, encoder=encoder)
    write_related(found, output)
    told = {"file": str(output), "encoder": encoder, "photos": len(keys), "bad": len(stats.bad), "neighbours": count}
    print(json.dumps(told) if as_json else f"{output}: {count} neighbours of each of {len(keys):,} photos")
    if stats.bad:
        raise typer.Exit(1)


def _spec(path: str, reader: str, split: str | None, images: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """What to read, with the reader's own keys. Raises: ConfigError for a change that is none."""
    from graftlm.config import apply_override

    given = {"path": path, "reader": reader, "split": split, "images": None if images is None else str(images)}
    tree: dict[str, Any] = {"data": {name: value for name, value in given.items() if value}}
    for change in changes:
        apply_override(tree, f"data.{change}")
    spec: dict[str, Any] = tree["data"]
    return spec


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
        *[f"  photos per sample  {_spread(report.per_sample)}"] * (report.per_sample.greatest > 1),
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
