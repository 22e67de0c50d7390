"""`graft caption`: captions photos and folders of photos with a trained graft."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from graftlm.data.sentence import Sentence
    from graftlm.lm.decode import Decoding
    from graftlm.systems.base import Responder

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BATCH = 8


def caption(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Photos, or folders of photos.")],
    graft: Annotated[str, typer.Option(help="Ready-made name, folder, run or hub id.")] = "clipcap-smollm2",
    beam: Annotated[int, typer.Option(min=1, max=64, help="Beams; 1 is greedy and quickest.")] = 3,
    prompt: Annotated[str, typer.Option(help="Words the caption begins with.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest caption in tokens.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Captions photos: one line "path<TAB>caption" each. What cannot be read is named on stderr (exit 1)."""
    import json

    import graftlm
    from graftlm.lm.decode import Decoding

    paths, errors = find_all(photos)
    pictures, bad = read_photos(paths)
    errors += bad
    found: list[dict[str, str]] = []
    if pictures:
        system = graftlm.load(graft)
        decoding = Decoding(num_beams=beam, max_tokens=max_tokens, no_repeat_ngram=graftlm.NO_REPEAT_NGRAM)
        for path, answer in answers(system, pictures, prompt, decoding):
            found.append({"path": path, "caption": answer})
            if not as_json:
                typer.echo(f"{path}\t{answer}")
    for row in errors:
        typer.echo(row["message"], err=True)
    if as_json:
        typer.echo(json.dumps({"graft": graft, "captions": found, "errors": errors}, ensure_ascii=False))
    if errors:
        raise typer.Exit(1)


def find_all(names: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """The photos behind all names; path, reason and sentence of folders that hold none or cannot be read."""
    paths: list[str] = []
    bad: list[dict[str, str]] = []
    for name in names:
        try:
            paths += find_photos([name])
        except DataError as error:
            bad.append({"path": name, "reason": "no-pictures", "message": str(error)})
    return paths, bad


def find_photos(names: Sequence[str]) -> Iterator[str]:
    """Files as they are named, folders as the pictures in them.

    Raises: DataError for a folder that may not be read or has no pictures; UsageError for an empty name, which would be
        the current folder.
    """
    for name in names:
        if not name.strip():
            raise UsageError("expected the path of a photo or a folder, found an empty one; for this folder give '.'")
        if not Path(name).is_dir():
            yield name
            continue
        if not os.access(name, os.R_OK | os.X_OK):
            raise DataError(f"{name}: the folder may not be read; change its permissions")
        inside = sorted(str(path) for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"{name}: expected a folder of pictures ({', '.join(sorted(SUFFIXES))}), found none in it")
        yield from inside


def read_photos(paths: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Paths that hold a picture, and path, reason and sentence of those that do not."""
    from graftlm.data.media import load_image
    from graftlm.errors import BadSampleError

    good: list[str] = []
    bad: list[dict[str, str]] = []
    for path in paths:
        try:
            load_image(path)
            good.append(path)
        except BadSampleError as error:
            bad.append({"path": path, "reason": error.reason, "message": str(error)})
    return good, bad


def answers(system: Responder, paths: Sequence[str], prompt: str, decoding: Decoding) -> Iterator[tuple[str, str]]:
    """Path and caption of every picture, a batch at a time, with a bar on stderr for more than one batch."""
    from rich.console import Console
    from rich.progress import track

    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    shown = len(batches) > 1 and sys.stderr.isatty()
    console = Console(stderr=True)
    for batch in track(batches, "captions", console=console, disable=not shown):
        sentences = [_sentence(path, prompt) for path in batch]
        for path, answer in zip(batch, system.respond(sentences, decoding), strict=True):
            yield path, f"{prompt} {answer.text().strip()}".strip()


def _sentence(path: str, prompt: str) -> Sentence:
    from graftlm.data.sentence import Image, Sentence, Text

    start = (Text(prompt),) if prompt else ()
    return Sentence((Image(path), *start, Text("", target=True)))
