"""The papers behind the systems, read off the docstrings of systems/*.py without importing them.

A system's docstring holds: the title; "Authors. Venue. arXiv:ID"; the idea in two sentences; and a list under
"Differences from the paper:".
"""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graftlm.errors import DataError

_SOURCE = re.compile(r"(?P<authors>.+?)\. (?P<venue>[^.]+?)\. arXiv:(?P<arxiv>\d{4}\.\d{4,5})\.?")


@dataclass(frozen=True, slots=True)
class Paper:
    """One published system as its file describes it; `arxiv` is an id like "2111.09734"."""

    name: str
    title: str
    authors: str
    venue: str
    arxiv: str
    idea: str
    differences: tuple[str, ...]

    @property
    def url(self) -> str:
        """The abstract page."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {**asdict(self), "differences": list(self.differences), "url": self.url}


def read_paper(name: str, docstring: str) -> Paper:
    """The paper of one docstring. Raises: DataError when a part of it is missing."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", docstring.strip())]
    source = _SOURCE.fullmatch(" ".join(blocks[1].split())) if len(blocks) > 1 else None
    ideas = [block for block in blocks[2:] if not block.startswith("Differences from the paper")]
    listed = [block for block in blocks[2:] if block.startswith("Differences from the paper")]
    if source is None or not ideas or not listed:
        raise DataError(
            f"systems/{name}.py: expected a docstring of title, 'Authors. Venue. arXiv:ID', the idea and "
            "'Differences from the paper:' with a list, found another form"
        )
    rows = re.split(r"\n\s*- ", "\n" + listed[0].partition(":")[2].strip())
    return Paper(
        name=name,
        title=" ".join(blocks[0].split()).rstrip("."),
        authors=source["authors"],
        venue=source["venue"],
        arxiv=source["arxiv"],
        idea=" ".join(ideas[0].split()),
        differences=tuple(" ".join(row.split()) for row in rows if row.strip()),
    )


def papers() -> list[Paper]:
    """The paper of every system that exists, by name."""
    files = sorted((Path(__file__).parent / "systems").glob("*.py"))
    return [
        read_paper(path.stem, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        for path in files
        if path.stem not in ("__init__", "base")
    ]
