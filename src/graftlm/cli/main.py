"""The command `graft`: one verb per file of this folder, imported only when it is called.

A file `<verb>.py` defines a function of the verb's name, or `app`, a `typer.Typer` group of verbs; the first line of
its docstring is the verb's help. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from graftlm.errors import GraftError, UsageError, unknown

_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
_ABOUT = "Give a frozen language model new senses: caption, ask, train, evaluate and serve grafts."
_EPILOG = "Start with:  graft caption PHOTO   |   graft demo   |   graft VERB --help"


def verbs() -> dict[str, str]:
    """Every verb and its one-line help, from the files of this folder; none of them is imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {_verb(path): _summary(path) for path in files if path.stem not in ("__init__", "main")}


def _verb(path: Path) -> str:
    return path.stem.replace("_", "-")


def _summary(path: Path) -> str:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = re.sub(r"^`?graft [a-z -]+`?: *", "", words.partition("\n")[0]).rstrip(".")
    return line[:1].upper() + line[1:]


def build(called: str | None) -> typer.Typer:
    """The typer application, in which only the verb `called` is more than its name and its help."""
    app = typer.Typer(
        help=_ABOUT, epilog=_EPILOG, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.callback(help=_ABOUT)(_options)
    for verb, summary in verbs().items():
        if verb == called:
            _add(app, verb, summary, importlib.import_module(f"graftlm.cli.{verb.replace('-', '_')}"))
        else:
            app.command(verb, help=summary)(_not_called)
    return app


def _add(app: typer.Typer, verb: str, summary: str, module: ModuleType) -> None:
    if hasattr(module, "app"):
        app.add_typer(module.app, name=verb, help=summary, no_args_is_help=True)
    else:
        app.command(verb)(getattr(module, verb.replace("-", "_")))


def _not_called() -> None:
    raise AssertionError("only the called verb runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        from graftlm import __version__

        typer.echo(f"graftlm {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options before the verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("GRAFTLM_DEBUG"):
            raise
        print(_in_words(error), file=sys.stderr)
        return error.exit_code if isinstance(error, GraftError) else 1


def _run(arguments: list[str]) -> int:
    called = next((word for word in arguments if not word.startswith("-")), None)
    known = verbs()
    if called is not None and called not in known:
        raise UsageError(unknown("verb", called, known))
    try:
        build(called)(args=arguments, prog_name="graft")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _in_words(error: Exception) -> str:
    if isinstance(error, GraftError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; check the path, its permissions and the free space"
    kind = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")
    return f"this is a bug in GraftLM ({kind}); rerun with GRAFTLM_DEBUG=1 for the traceback, and report it"
