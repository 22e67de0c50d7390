"""Sessions over toy grafts, and galleries of small pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from graftlm.chat.answerer import Answerer
from graftlm.chat.session import Opened, Session
from graftlm.chat.settings import Settings
from graftlm.data.gallery import MemoryGallery
from graftlm.data.sentence import Image
from graftlm.systems.base import Retriever
from tests.conformance.test_systems import build
from tests.pictures import picture

ALWAYS, NEVER = "1000", "-1000"
"""Biases with which [RET] is, and is not, the first thing written."""


@cache
def answerer(name: str) -> Answerer:
    """A toy graft that answers."""
    return Answerer(build(name))


def photos(folder: Path, count: int = 3) -> list[str]:
    """Paths of pictures, each unlike the others."""
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


def gallery(paths: list[str]) -> MemoryGallery:
    """The pictures with the vectors that the toy FROMAGe gives them."""
    system = answerer("fromage").system
    assert isinstance(system, Retriever)
    images = [Image(path) for path in paths]
    return MemoryGallery(images, np.asarray(system.embed_media(images)))


def session(name: str, paths: list[str] | None = None, tell: Callable[[str], None] = print) -> Session:
    """A dialogue with a toy graft, whose answers may show `paths`."""
    found = answerer(name)
    opened = Opened(gallery(paths), "photos", "open") if paths else None

    def refuse(name: str) -> Opened:
        raise AssertionError(f"no index is to be opened, and not {name}")

    settings = Settings(found.usual_format, max_tokens=6)
    return Session(found, name, refuse, tell, settings, opened=opened, fingerprint=name)
