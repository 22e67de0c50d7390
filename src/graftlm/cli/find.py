"""`graft find`: finds photos in your own folders, by words, by picture, by both or by a dialogue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from graftlm.data.gallery import Hit
    from graftlm.data.sentence import Sentence
    from graftlm.index import ImageIndex
    from graftlm.index.filters import Filter
    from graftlm.systems.base import Retriever

_LOOKED_THROUGH = 20_000
"""Up to so many photos a folder is listed again, to tell whether the index is up to date."""


def find(
    words: Annotated[str, typer.Argument(help='What is sought: "a dog on the beach".')] = "",
    folder: Annotated[
        str, typer.Argument(help="Folder of photos, or name of an index; the only index without it.")
    ] = "",
    image: Annotated[list[str] | None, typer.Option(help="A photo: alone for others like it, or beside words.")] = None,
    dialogue: Annotated[str, typer.Option(help="A file of Sentence JSON, before the words.")] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Photos to find.")] = 10,
    conditions: Annotated[
        list[str] | None, typer.Option("--filter", help="'date>=2023-06', 'folder=holiday', 'size>2MB', 'author=Ann'.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A photo that must not be found, or a pattern of paths (*/work/*).")
    ] = None,
    graft: Annotated[
        str, typer.Option(help="Ready-made name, folder, run or hub id; the index's own without it.")
    ] = "",
    exactly: Annotated[bool, typer.Option("--exactly", help="Look at every photo of a large index.")] = False,
    report: Annotated[str, typer.Option(help="Write what was found as a page (.html) with thumbnails.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Finds photos: one line "score<TAB>path" each, best first. A folder without an index is indexed first."""
    import json

    from graftlm.index import ImageIndex
    from graftlm.index.filters import parse_all, without_paths

    if (image or dialogue) and words and not folder and Path(words).is_dir():
        words, folder = "", words
    files, patterns = _excluded(exclude or [])
    where = parse_all(conditions or [])
    for pattern in patterns:
        where = where & without_paths(pattern)
    query = _query(words, image or [], dialogue)
    started = time.perf_counter()
    target = _target(folder, graft)
    with ImageIndex(target.place) as index:
        index.check(target.identity)
        where = _within(where, target.root, index.roots())
        times = {"load": time.perf_counter() - started}
        hits = _search(index, target.retriever, query, count, files, where, exactly, times)
        answer = _answer(index, hits, query, target.identity.graft, times)
        if report:
            _write_report(Path(report), index, query, hits, answer)
        if not as_json:
            _tell_stale(index, target)
    if as_json:
        typer.echo(json.dumps({**answer, "report": report or None}, ensure_ascii=False))
        return
    for hit in hits:
        typer.echo(f"{hit.score:.4f}\t{_path(hit)}")
    if not hits:
        typer.echo("nothing was found; loosen the filters, or add photos with `graft index add`", err=True)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is searched: the index, the folder of it that was asked for, and the graft."""

    place: Path
    root: Path | None
    retriever: Retriever
    identity: Any
    was_built: bool


def _target(folder: str, graft: str) -> _Target:
    """The index of a folder or a name, built where a folder has none. Raises: UsageError, DataError."""
    from graftlm.cli.index import GRAFT, load_retriever, own_graft, update
    from graftlm.index.places import folder_meant, folder_of, holding, name_for, names

    root = folder_meant(folder) if folder else None
    name = folder or _only_index(names())
    is_new = root is not None and holding(root) is None
    place = folder_of(name_for(root) if root else name)
    graft = graft or own_graft(place) or GRAFT
    retriever, identity = load_retriever(graft)
    if is_new and root is not None:
        typer.echo(f"{folder} has no index yet; building it first (it is kept in {place})", err=True)
        update(place, [root], retriever, identity, rebuild=False, quiet=False)
    return _Target(place, root, retriever, identity, is_new)


def _only_index(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError('nothing is indexed yet; name the folder of photos: graft find "a dog" ./photos')
    raise UsageError(f"expected a folder of photos or one of the indexes {', '.join(names)}, found neither; name one")


def _query(words: str, images: Sequence[str], dialogue: str) -> Sentence:
    """What is sought as a sentence without its closing target. Raises: UsageError when nothing is."""
    from graftlm.data.sentence import Image, Sentence, Text
    from graftlm.index.filters import is_unicode

    if not is_unicode(words):
        raise UsageError("expected words in UTF-8, found other bytes; type them again")
    before = _dialogue(Path(dialogue)) if dialogue else Sentence()
    parts = [*before, *(Image(path) for path in images), *([Text(words.strip())] if words.strip() else [])]
    if not parts:
        raise UsageError('expected words, --image or --dialogue, found nothing to seek: graft find "a dog" ./photos')
    return Sentence(tuple(parts))


def _dialogue(path: Path) -> Sentence:
    """A dialogue in Sentence JSON; its pictures' paths are relative to the file. Raises: DataError."""
    import json
    from dataclasses import replace

    from graftlm.data.sentence import Image, Sentence

    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the dialogue cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: expected Sentence JSON (a list of parts), found no JSON") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected Sentence JSON, a list of parts as {{'type': 'text', 'text': 'a dog'}}")
    parts = []
    for part in Sentence.from_json(rows).context():
        source = getattr(part, "source", None)
        if isinstance(part, Image) and part.is_sought:
            continue
        if isinstance(part, Image) and isinstance(source, str) and (path.parent / source).exists():
            part = replace(part, source=str(path.parent / source))
        parts.append(part)
    return Sentence(tuple(parts))


def _excluded(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Content hashes of photos that are there, and patterns of paths."""
    from graftlm.index.files import content_key

    files = [name for name in names if Path(name).is_file()]
    return [content_key(name).hex() for name in files], [name for name in names if name not in files]


def _within(where: Filter, root: Path | None, roots: Sequence[str]) -> Filter:
    """Only the folder that was asked for, when its index holds more."""
    from graftlm.index.filters import under

    is_all = root is None or all(Path(each).is_relative_to(root) for each in roots)
    return where if root is None or is_all else under(root) & where


def _path(hit: Hit) -> str:
    assert isinstance(hit.image.source, str)
    return hit.image.source


def _search(
    index: ImageIndex,
    retriever: Retriever,
    query: Sentence,
    count: int,
    exclude: Sequence[str],
    where: Filter,
    exactly: bool,
    times: dict[str, float],
) -> list[Hit]:
    """The hits; a picture that the query itself holds is not among them."""
    from graftlm.data.media import content_hash
    from graftlm.data.sentence import Image, Sentence

    started = time.perf_counter()
    media = query.media()
    if len(query) == len(media) == 1:
        vectors = retriever.embed_media(media)
    else:
        vectors = retriever.embed_queries([Sentence((*query.parts, Image.sought()))])
    times["query"] = time.perf_counter() - started
    started = time.perf_counter()
    keys = {*exclude, *(content_hash(part) for part in media)}
    (hits,) = index.search(vectors.numpy(), count, [keys], where, exactly)
    times["search"] = time.perf_counter() - started
    return hits


def _answer(
    index: ImageIndex, hits: Sequence[Hit], query: Sentence, graft: str, times: dict[str, float]
) -> dict[str, Any]:
    import json

    details = index.metadata([hit.item for hit in hits])
    rows = []
    for hit in hits:
        date, metadata = details[hit.item]
        row = {"path": _path(hit), "score": round(hit.score, 6), "key": hit.key, "date": date}
        rows.append({**row, "metadata": json.loads(metadata)})
    seconds = {name: round(value, 4) for name, value in times.items()}
    words = query.text()
    pictures = [source for part in query.media() if isinstance(source := getattr(part, "source", None), str)]
    return {
        "index": index.folder.name,
        "graft": graft,
        "query": {"text": words, "pictures": pictures},
        "photos": len(index),
        "hits": rows,
        "seconds": seconds,
    }


def _write_report(path: Path, index: ImageIndex, query: Sentence, hits: Sequence[Hit], answer: dict[str, Any]) -> None:
    from graftlm.data.sentence import Image
    from graftlm.index.page import page, write_page

    asked = [part.source for part in query.media() if isinstance(part, Image)]
    words = query.text() or "photos like this one"
    facts = [
        f"{len(hits)} of {answer['photos']:,} photos of the index '{answer['index']}'",
        f"graft {answer['graft']}",
        f"query {1000 * answer['seconds']['query']:.0f} ms, search {1000 * answer['seconds']['search']:.1f} ms",
        "score: cosine of query and photo",
    ]
    write_page(path, page(words, asked, hits, index.metadata([hit.item for hit in hits]), facts))
    typer.echo(f"page: {path}", err=True)


def _tell_stale(index: ImageIndex, target: _Target) -> None:
    """A note when the folder has changed since; nothing is said of folders too large to look through."""
    from graftlm.index.adding import count_changes

    if target.was_built or target.root is None or len(index) > _LOOKED_THROUGH:
        return
    different = count_changes(index.known_files(), target.root)
    if different:
        typer.echo(f"{different:,} photos are new, changed or gone since; run: graft index add {target.root}", err=True)
