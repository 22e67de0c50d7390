"""Controls: the same questions with picture or film made useless. A score they reach is not sight."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from graftlm.data.labelled import chosen, refilled, relabelled
from graftlm.data.media import black_image
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Part, Sentence, Text, Video
from graftlm.data.video import black_film
from graftlm.errors import DataError, UsageError, unknown
from graftlm.evaluate.answers import part_key

K = TypeVar("K")
LEAD_IN = "A photo of"
"""What a sentence of nothing but a picture is asked with when its picture is taken away."""

Seen: TypeAlias = Image | Video
_WORDS: dict[type[Part], str] = {Image: "pictures", Video: "films"}


def blind(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every shown picture black, every film black frames."""
    black = black_image()
    return _change(samples, lambda part: black if isinstance(part, Image) else black_film(part.source))


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every shown picture replaced by that of another sample, every film by another one's; none keeps its place.

    Raises: DataError when all samples show one picture, or one film.
    """
    sources: dict[type[Part], dict[Hashable, Media]] = {}
    for sample in samples:
        for part in sample.sentence.prompt():
            if isinstance(part, Seen):
                sources.setdefault(type(part), {}).setdefault(part_key(part), part.source)
    others: dict[tuple[type[Part], Hashable], Media] = {}
    for kind, found in (sources or {Image: {}}).items():
        if len(found) < 2:
            raise DataError(f"shuffled control: expected 2 different {_WORDS[kind]} or more, found {len(found)}")
        keys = list(found)
        others |= {(kind, key): found[other] for key, other in zip(keys, deranged(keys, seed), strict=True)}
    return _change(samples, lambda part: others[type(part), part_key(part)])


def text_only(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """No picture and no film at all; a sentence without other words is asked with `LEAD_IN`."""
    changed = []
    for sample in samples:
        prompt = sample.sentence.prompt().parts
        kept: tuple[Part, ...] = tuple(part for part in prompt if not isinstance(part, Seen))
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
    """Whether any prompt holds a picture or a film; without one there is nothing to control."""
    return any(isinstance(part, Seen) for sample in samples for part in sample.sentence.prompt())


def _change(samples: Sequence[Sample], source: Callable[[Seen], Media]) -> list[Sample]:
    """The samples with other sources for the pictures and films of their prompts."""

    def part_of_prompt(part: Part) -> Part:
        return replace(part, source=source(part)) if isinstance(part, Seen) else part

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
