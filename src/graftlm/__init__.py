"""GraftLM gives a frozen language model new senses.

A *graft* is the few million trained parameters between a frozen encoder and a frozen language model.
``graftlm.caption("photo.jpg")`` uses a ready-made one. Names load on first use: importing this package
imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.data.sentence import Audio, Image, Media, Sentence, State, Text, Video
    from graftlm.errors import GraftError
    from graftlm.lm.decode import Decoding
    from graftlm.systems.base import Responder, System

__version__ = "0.1.0"
READY_MADE = "clipcap-smollm2"
NO_REPEAT_NGRAM = 3
"""What keeps a caption of an unusual photo from going round in circles; captions of usual ones stay as they are."""

_HOMES = {
    "Audio": "graftlm.data.sentence",
    "Decoding": "graftlm.lm.decode",
    "GraftError": "graftlm.errors",
    "Image": "graftlm.data.sentence",
    "Responder": "graftlm.systems.base",
    "Sentence": "graftlm.data.sentence",
    "State": "graftlm.data.sentence",
    "System": "graftlm.systems.base",
    "Text": "graftlm.data.sentence",
    "Video": "graftlm.data.sentence",
}

__all__ = [
    "Audio",
    "Decoding",
    "GraftError",
    "Image",
    "Responder",
    "Sentence",
    "State",
    "System",
    "Text",
    "Video",
    "__version__",
    "ask",
    "caption",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load(source: str | Path = READY_MADE) -> System:
    """A trained system, ready to respond: a ready-made graft's name, a folder, a run or a hub id.

    Raises: CheckpointError when the graft is broken or belongs to other frozen parts; BackboneError when a frozen
    part is not to be found.
    """
    from graftlm.grafts import load as load_graft

    return load_graft(source)


def caption(image: Media, graft: str = READY_MADE, *, prompt: str = "", beams: int = 3) -> str:
    """A caption of a picture: a path, the bytes of a file, a Pillow picture or an array of uint8 (H, W, 3).

    `prompt` begins the caption and is not repeated in it. The graft stays loaded between calls.
    Raises: BadSampleError for an unreadable picture, and what `load` raises.
    """
    from graftlm.data.sentence import Image, Sentence, Text
    from graftlm.lm.decode import Decoding

    start = (Text(prompt),) if prompt else ()
    decoding = Decoding(num_beams=beams, no_repeat_ngram=NO_REPEAT_NGRAM)
    return _answer(graft, Sentence((Image(image), *start, Text("", target=True))), decoding)


def ask(image: Media, question: str, graft: str = READY_MADE, *, beams: int = 3) -> str:
    """The answer to a question about a picture; what it is worth depends on what the graft was trained on.

    Raises: BadSampleError for an unreadable picture, and what `load` raises.
    """
    from graftlm.data.sentence import Image, Sentence, Text
    from graftlm.lm.decode import Decoding

    words = Text(f"Question: {question.strip()} Answer:")
    return _answer(graft, Sentence((Image(image), words, Text("", target=True))), Decoding(num_beams=beams))


@lru_cache(maxsize=1)
def _kept(graft: str) -> System:
    return load(graft)


def _answer(graft: str, sentence: Sentence, decoding: Decoding) -> str:
    from graftlm.data.media import load_image
    from graftlm.data.sentence import Image

    for part in sentence:
        if isinstance(part, Image):
            load_image(part.source)  # a wrong picture is told before the graft is loaded
    return _kept(str(graft)).respond([sentence], decoding)[0].text().strip()
