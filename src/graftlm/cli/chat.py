"""`graft chat`: talks with a graft about your pictures, and lets it answer with pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftlm.errors import UsageError

if TYPE_CHECKING:
    from graftlm.chat.answerer import Answerer
    from graftlm.chat.inline import Protocol
    from graftlm.chat.session import Opened, Session
    from graftlm.data.gallery import Gallery
    from graftlm.index import ImageIndex
    from graftlm.index.catalogue import Identity

_HELLO = "/help shows the commands, /image PATH adds a picture, Ctrl-D leaves."


def chat(
    graft: Annotated[
        str, typer.Argument(help="Ready-made name, folder, run or hub id; a ready-made one without it.")
    ] = "",
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the dialogue here, and go on with it.")
    ] = None,
    index: Annotated[
        str, typer.Option(metavar="FOLDER|NAME", help="Photos for answers, indexed where they are not yet.")
    ] = "",
    image: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="A picture for the first turn; repeatable.")
    ] = None,
    once: Annotated[str | None, typer.Option(metavar="TEXT", help="Say this, print the answer and leave.")] = None,
    form: Annotated[
        Literal["chat", "qa", "plain", "caption"] | None, typer.Option("--format", help="How turns are written down.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As /set: bias, threshold, most ...")
    ] = None,
    inline: Annotated[
        Literal["auto", "never", "kitty", "iterm"], typer.Option(help="Draw pictures in the terminal.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Go on with a dialogue that another graft has led.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help='Read lines {"text": ..., "images": [...]}, print one object for each.')
    ] = False,
) -> None:
    """Talks with a graft about pictures; one that retrieves, as fromage, also answers with pictures of a folder."""
    _check_first(image or (), history, changes or ())
    session = _session(graft, force)
    try:
        if history is not None:
            session.resume(history)
        _configure(session, form, changes or (), index)
        for path in image or ():
            session.show(path)
        is_whole = _talk(session, once, as_json, _protocol(inline))
    finally:
        session.close()
    if not is_whole:
        raise typer.Exit(1)


def _check_first(images: Sequence[str], history: Path | None, changes: Sequence[str]) -> None:
    """What can be told before a graft is loaded. Raises: GraftError."""
    from graftlm.chat.history import read_history
    from graftlm.chat.settings import Settings
    from graftlm.data.media import load_image

    for name, value in map(_pair, changes):
        Settings().changed(name, value)
    for path in images:
        load_image(os.path.expanduser(path))
    if history is not None and history.exists():
        read_history(history)


def _pair(change: str) -> tuple[str, str]:
    name, equals, value = change.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--set {change}: expected NAME=VALUE, for example --set bias=1.5")
    return name, value


def _session(graft: str, takes_any: bool) -> Session:
    import graftlm
    from graftlm.backbones import home
    from graftlm.chat.answerer import Answerer
    from graftlm.chat.session import Session
    from graftlm.chat.settings import Settings
    from graftlm.cli.index import GRAFT

    name = graft or GRAFT
    answerer = Answerer(graftlm.load(name), home() / "features")
    name = str(Path(name).absolute()) if Path(name).is_dir() else name
    return Session(answerer, name, _opener(answerer, name), _tell, Settings(answerer.usual_format), takes_any=takes_any)


def _configure(session: Session, form: str | None, changes: Sequence[str], index: str) -> None:
    """What the command line says comes before what the history says."""
    for name, value in (*([("format", form)] if form else []), *map(_pair, changes)):
        session.set(name, value)
    if index:
        session.index(index)


def _talk(session: Session, once: str | None, as_json: bool, inline: Protocol | None) -> bool:
    """The dialogue, or its one turn; returns whether every line could be followed."""
    import json

    from graftlm.chat.terminal import Terminal, answer_row, converse, converse_json

    terminal = Terminal(session, _write, inline)
    if once is not None and as_json:
        typer.echo(json.dumps(answer_row(session.say(once)), ensure_ascii=False))
    elif once is not None:
        terminal.say(once)
    elif as_json:
        return converse_json(session, _piped(), _write)
    elif sys.stdin is not None and sys.stdin.isatty():
        session.tell(_HELLO)
        return converse(terminal, _typed, is_typed=True)
    else:
        lines = _piped()
        return converse(terminal, lambda: next(lines, None), is_typed=False)
    return True


def _typed() -> str | None:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives the line its editing keys)
    try:
        if sys.stdout.isatty():
            return input("> ")
        sys.stderr.write("> ")
        sys.stderr.flush()
        return input()
    except EOFError:
        return None


def _piped() -> Iterator[str]:
    for raw in sys.stdin.buffer if sys.stdin is not None else ():
        yield raw.decode("utf-8", "replace")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _protocol(inline: str) -> Protocol | None:
    from graftlm.chat.inline import protocol_of

    if inline == "auto":
        return protocol_of(os.environ) if sys.stdout.isatty() else None
    return "kitty" if inline == "kitty" else "iterm" if inline == "iterm" else None


def _opener(answerer: Answerer, graft: str) -> Callable[[str], Opened]:
    """What opens the index of a folder or a name for this graft, and builds it where there is none."""

    def open_index(name: str) -> Opened:
        from graftlm.cli.index import update
        from graftlm.index import ImageIndex
        from graftlm.index.places import folder_meant, folder_of, holding, name_for

        root = folder_meant(name)
        place = folder_of(name_for(root) if root else name)
        identity = _identity(answerer, graft)
        if root is not None and holding(root) is None:
            _tell(f"{name} has no index yet; building it (it is kept in {place})")
            with answerer.uncached() as system:
                update(place, [root], system, identity, rebuild=False, quiet=False)  # type: ignore[arg-type]
        return _opened(ImageIndex(place), identity, root)

    return open_index


def _identity(answerer: Answerer, graft: str) -> Identity:
    from graftlm.index.catalogue import Identity

    system: Any = answerer.system
    encoder = system.fingerprints().get("encoders.image", "")
    return Identity(graft, system.retrieval_fingerprint(), encoder, int(system.shared_dim))


def _opened(index: ImageIndex, identity: Identity, root: Path | None) -> Opened:
    from graftlm.chat.session import Opened

    try:
        index.check(identity)
        gallery: Gallery = index
        if root is not None and not all(Path(each).is_relative_to(root) for each in index.roots()):
            gallery = _Below(index, root)
        note = f"answers may show photos of {root or index.folder.name} ({len(index):,} in its index)"
    except BaseException:
        index.close()
        raise
    return Opened(gallery, str(root or index.folder.name), note, index.close)


class _Below:
    """The photos of an index that lie under one folder."""

    def __init__(self, index: ImageIndex, root: Path) -> None:
        from graftlm.index.filters import under

        self._index = index
        self._where = under(root)

    def search(self, vectors: Any, count: int, exclude: Any = None) -> Any:
        """As `Gallery.search`."""
        return self._index.search(vectors, count, exclude, self._where)
