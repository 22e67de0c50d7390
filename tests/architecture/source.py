"""The repository as the architecture rules see it: files, syntax trees, imports, sizes."""

from __future__ import annotations

import ast
import io
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("src", "tests", "examples", "benchmarks", "docs")
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the repository, with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """Name inside the package ("data.sentence"); empty outside of it."""
        if not self.path.startswith("src/graftlm/"):
            return ""
        name = self.path.removeprefix("src/graftlm/").removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__") if name != "__init__" else "__init__"

    def functions(self) -> Iterator[FunctionNode]:
        return (node for node in ast.walk(self.tree) if isinstance(node, FunctionNode))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    @cached_property
    def code_lines(self) -> frozenset[int]:
        """Numbers of lines that hold code: neither blank, nor comment, nor docstring."""
        empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in empty:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            value = node.value if isinstance(node, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines.difference_update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
        return frozenset(lines)

    def size(self, node: ast.stmt | None = None) -> int:
        """Lines of code of the file or of one statement."""
        if node is None:
            return len(self.code_lines)
        return len(self.code_lines.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_imports(self.tree, lazy=False))


@dataclass(frozen=True)
class Import:
    """One imported module. `names`: what is taken from it, which may be modules too."""

    module: str
    line: int
    lazy: bool
    names: tuple[str, ...] = field(default=())
    level: int = 0

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def _imports(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    """Imports that run; those under TYPE_CHECKING make no dependency."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            yield Import(child.module or "", child.lineno, lazy, tuple(a.name for a in child.names), child.level)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _imports(other, lazy=lazy)
        else:
            yield from _imports(child, lazy=lazy or isinstance(child, FunctionNode | ast.Lambda))


def tracked_files() -> list[Path]:
    """Files that git knows or would take; every file of a tree without git, hidden folders left out."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Python files of the given folders of the repository, all code folders by default."""
    found = []
    for folder in folders or CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "__pycache__" not in path.parts:
                found.append(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
    return tuple(found)
