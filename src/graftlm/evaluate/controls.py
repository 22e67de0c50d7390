"""Controls: the same questions with the picture made useless. A score they reach is not sight."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from graftlm.data.labelled import chosen, refilled, relabelled
from graftlm.data.media import black_image
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Part, Sentence, Text
from graftlm.errors import DataError, UsageError, unknown
from graftlm.evaluate.answers import part_key

K = TypeVar("K")
LEAD_IN = "A photo of"
"""What a sentence of nothing but a picture is asked with when its picture is taken away."""


def blind(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every shown picture black."""
    black = black_image()
    return _change(samples, lambda part: Image(black, role=part.role))


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every shown picture replaced by that of another sample; no picture keeps its place.

    Raises: DataError when all samples show one picture.
    """
    sources: dict[Hashable, Media] = {}
    for sample in samples:
        for part in sample.sentence.prompt():
            if isinstance(part, Image):
                sources.setdefault(part_key(part), part.source)
    if len(sources) < 2:
        raise DataError(f"shuffled control: expected 2 different pictures or more, found {len(sources)}")
    keys = list(sources)
    other = dict(zip(keys, deranged(keys, seed), strict=True))
    return _change(samples, lambda part: Image(sources[other[part_key(part)]], role=part.role))


def text_only(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """No picture at all; a sentence without other words is asked with `LEAD_IN`."""
    changed = []
    for sample in samples:
        prompt = sample.sentence.prompt().parts
        kept: tuple[Part, ...] = tuple(part for part in prompt if not isinstance(part, Image))
        kept = kept if any(isinstance(part, Text) and part.content.strip() for part in kept) else (Text(LEAD_IN),)
        changed.append(replace(sample, sentence=Sentence(kept + sample.sentence.parts[len(prompt) :])))
    return changed


def emptied(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Of a task that is read: every slot of its template empty, the template's own words kept."""
    return [replace(sample, sentence=refilled(sample.sentence, "")) for sample in samples]


def swapped(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Of a task that is read: every text replaced by that of another row; the classes stay. Raises: DataError."""
    if len(samples) < 2:
        raise DataError(f"shuffled control: expected 2 rows or more, found {len(samples)}")
    others = deranged(range(len(samples)), seed)
    return [
        replace(sample, sentence=relabelled(samples[other].sentence, chosen(sample.sentence)[0]))
        for sample, other in zip(samples, others, strict=True)
    ]


CONTROLS: dict[str, Callable[[Sequence[Sample], int], list[Sample]]] = {
    "blind": blind,
    "shuffled": shuffled,
    "text-only": text_only,
}


TEXT_CONTROLS: dict[str, Callable[[Sequence[Sample], int], list[Sample]]] = {"blind": emptied, "shuffled": swapped}
"""What stands in place of `CONTROLS` where there are no pictures to take away."""


def check_controls(names: Sequence[str]) -> None:
    """Raises: UsageError for a control that does not exist."""
    for name in names:
        if name not in CONTROLS:
            raise UsageError(unknown("control", name, CONTROLS))


def shows_pictures(samples: Sequence[Sample]) -> bool:
    """Whether any prompt holds a picture; without one there is nothing to control."""
    return any(isinstance(part, Image) for sample in samples for part in sample.sentence.prompt())


def _change(samples: Sequence[Sample], change: Callable[[Image], Image]) -> list[Sample]:
    def part_of_prompt(part: Part) -> Part:
        return change(part) if isinstance(part, Image) else part

    changed = []
    for sample in samples:
        prompt = sample.sentence.prompt()
        rest = sample.sentence.parts[len(prompt) :]
        changed.append(replace(sample, sentence=Sentence(prompt.map(part_of_prompt).parts + rest)))
    return changed


def deranged(keys: Sequence[K], seed: int) -> list[K]:
    """Sattolo's algorithm: a uniformly drawn cycle through all keys, in which none stays where it was."""
    drawn = list(keys)
    rng = random.Random(seed)
    for last in range(len(drawn) - 1, 0, -1):
        other = rng.randrange(last)
        drawn[last], drawn[other] = drawn[other], drawn[last]
    return drawn
