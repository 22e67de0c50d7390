"""`graft index`: builds, shows and removes the index of a folder of photos, for `graft find`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from graftlm.data.sentence import Image
    from graftlm.index.adding import AddResult
    from graftlm.index.catalogue import Identity
    from graftlm.index.image_index import IndexInfo
    from graftlm.systems.base import Retriever

GRAFT = "fromage-smollm2"
"""The ready-made graft that finds pictures, and answers with them."""

_SHOWN = 5

app = typer.Typer(no_args_is_help=True)


@app.callback()
def index() -> None:
    """Builds, shows and removes the index of a folder of photos, for `graft find`."""


@app.command()
def add(
    folder: Annotated[str, typer.Argument(help="Folder of photos; every folder of the index without it.")] = "",
    name: Annotated[str, typer.Option(help="Of the index; after the folder without it.")] = "",
    graft: Annotated[
        str, typer.Option(help="Ready-made name, folder, run or hub id; the index's own without it.")
    ] = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make every vector anew, as for another graft.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Add what is new in a folder, and forget what is gone; stopped and called again, it goes on."""
    import json
    from dataclasses import asdict

    from graftlm.index.places import folder_of, name_for

    if not folder and not name:
        raise UsageError("expected a folder of photos, or --name of an index to bring up to date, found neither")
    root = _root(folder) if folder else None
    place = folder_of(name or name_for(root or Path()))
    graft = graft or own_graft(place) or GRAFT
    retriever, identity = load_retriever(graft)
    results = update(place, [root] if root else [], retriever, identity, rebuild=rebuild, quiet=quiet)
    if as_json:
        rows = {root: asdict(result) for root, result in results.items()}
        typer.echo(json.dumps({"index": place.name, "graft": graft, "folder": str(place), "folders": rows}))
        return
    for where, result in results.items():
        typer.echo(f"{where}: {_sentence(result)}")


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Of an index; all of them without it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is indexed: folders, photos, graft and size."""
    import json

    from graftlm.index import ImageIndex
    from graftlm.index.places import default_folder, folder_of, names

    found: list[IndexInfo] = []
    damaged: dict[str, str] = {}
    for each in [name] if name else names():
        try:
            with ImageIndex(folder_of(each)) as opened:
                found.append(opened.info())
        except DataError as error:
            if name:
                raise
            damaged[each] = str(error)
    if as_json:
        typer.echo(json.dumps({"folder": str(default_folder()), "indexes": list(map(_row, found)), "damaged": damaged}))
        return
    if not found and not damaged:
        typer.echo(f"nothing is indexed in {default_folder()}")
    for each_info in found:
        typer.echo(_lines(each_info))
    for sentence in damaged.values():
        typer.echo(sentence, err=True)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Of the index.")],
    folder: Annotated[str, typer.Option(help="Forget only this folder of photos.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Remove an index, or a folder from it; photos are never touched."""
    import json

    from graftlm.index import ImageIndex, places
    from graftlm.index.writer import IndexWriter

    place = places.folder_of(name)
    if folder:
        with ImageIndex(place) as opened:
            identity = opened.identity
        with IndexWriter(place, identity) as writer:
            removed = writer.remove_root(Path(folder).expanduser().resolve())
            writer.tidy()
    else:
        removed = _photos(place)
        places.remove(name)
    if as_json:
        typer.echo(json.dumps({"index": name, "folder": folder or None, "photos": removed}))
    else:
        typer.echo(f"{name}: forgot {removed:,} photos{' of ' + folder if folder else ''}; the photos themselves stay")


def load_retriever(graft: str) -> tuple[Retriever, Identity]:
    """A graft that finds pictures, and whose vectors its are. Raises: UsageError for a graft that does not."""
    import graftlm
    from graftlm.index.catalogue import Identity
    from graftlm.systems.base import Retriever

    system: Any = graftlm.load(graft)
    if not isinstance(system, Retriever):
        raise UsageError(f"graft '{graft}': expected one that finds pictures, found one that only writes")
    fingerprints: dict[str, str] = system.fingerprints() if hasattr(system, "fingerprints") else {}
    encoder = str(fingerprints.get("encoders.image", ""))
    name = str(Path(graft).absolute()) if Path(graft).is_dir() else graft
    return system, Identity(name, system.retrieval_fingerprint(), encoder, int(system.shared_dim))


def own_graft(place: Path) -> str:
    """The graft that made an index; "" where there is none."""
    from graftlm.index import ImageIndex
    from graftlm.index.catalogue import FILE

    if not (place / FILE).is_file():
        return ""
    with ImageIndex(place) as opened:
        return opened.identity.graft


def update(
    place: Path, roots: Sequence[Path], retriever: Retriever, identity: Identity, *, rebuild: bool, quiet: bool
) -> dict[str, AddResult]:
    """Brings an index up to date with folders (all of its own without), with a bar on stderr and bad photos named."""
    from graftlm.data.ledger import Ledger
    from graftlm.index.adding import add_folder
    from graftlm.index.writer import IndexWriter

    def embed(images: Sequence[Image]) -> Any:
        return retriever.embed_media(images).numpy()

    results: dict[str, AddResult] = {}
    with IndexWriter(place, identity, rebuild=rebuild) as writer:
        known = [Path(root) for root in writer.roots()]
        chosen = list(dict.fromkeys([*known, *roots])) if rebuild or not roots else list(roots)
        if not chosen:
            raise UsageError(f"index '{place.name}': expected a folder of photos to add, found none")
        ledger = Ledger(place / "bad_samples.jsonl")
        for root in chosen:
            with _bar(quiet) as bar:
                task = bar.add_task(root.name or str(root), total=None)

                def tell(done: int, total: int, bar: Any = bar, task: Any = task) -> None:
                    bar.update(task, completed=done, total=total)

                results[str(root)] = add_folder(writer, root, embed, ledger, tell)
            _tell_bad(results[str(root)], ledger)
    return results


def _bar(is_hidden: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=is_hidden or not console.is_terminal)


def _tell_bad(result: AddResult, ledger: Any) -> None:
    for message in list(result.bad.values())[:_SHOWN]:
        typer.echo(message, err=True)
    if len(result.bad) > _SHOWN:
        typer.echo(f"... and {len(result.bad) - _SHOWN} more, all in {ledger.path}", err=True)


def _root(folder: str) -> Path:
    from graftlm.index.places import check_name

    if not folder.strip():
        raise UsageError("expected a folder of photos, found an empty name; for this folder give '.'")
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{folder}: expected a folder of photos, found no such folder; check the path")
    return check_name(root.resolve())


def _photos(place: Path) -> int:
    from graftlm.index import ImageIndex

    try:
        with ImageIndex(place) as opened:
            return len(opened)
    except DataError:
        return 0  # a damaged index is removed all the same


def _sentence(result: AddResult) -> str:
    words = [f"{result.new:,} new", f"{result.changed:,} changed", f"{result.unchanged:,} as before"]
    words += [f"{result.removed:,} gone"] if result.removed else []
    words += [f"{result.duplicates:,} with a content that was known"] if result.duplicates else []
    words += [f"{len(result.bad):,} unreadable"] if result.bad else []
    return f"{', '.join(words)} ({result.seconds:.1f} s)"


def _row(info: IndexInfo) -> dict[str, Any]:
    from dataclasses import asdict

    about = info.approximate
    return {
        **{key: value for key, value in asdict(info).items() if key not in ("identity", "approximate", "folder")},
        **asdict(info.identity),
        "folder": str(info.folder),
        "approximate": {"recall@10": about[0], "vectors": about[1]} if about else None,
    }


def _lines(info: IndexInfo) -> str:
    bad = ", ".join(f"{count:,} {reason}" for reason, count in sorted(info.unreadable.items()))
    search = f"approximate (recall@10 {info.approximate[0]:.3f} when built)" if info.approximate else "exact"
    lines = [
        f"{info.name}: {info.photos:,} photos, {info.contents:,} different" + (f" ({bad})" if bad else ""),
        *(f"  {root}" for root in info.roots),
        f"  graft {info.identity.graft}, width {info.identity.width}, search {search}, {info.num_bytes / 1e6:,.1f} MB",
    ]
    return "\n".join(lines)
