"""Fast concept binding: episodes in which made-up names are told of pictures, and then asked for (Frozen §4.3).

"This is a dax." stands behind a picture of one class, "This is a blicket." behind one of another; then a new picture is
shown, and "Question: What is this? Answer: This is a" waits for its name (arXiv:2106.13884). Episodes come from
generated scenes, from captioned photos whose captions agree on a thing, or from the paper's own files (reader
``open_ended``).

In scenes the classes differ in shape, or in colour, and all pictures of an episode share the other one, so that only
one reading is right. Episodes of one concept are balanced: over ``ways`` squared of them in a row, a model that always
gives one name, or always the name it was told last, is right exactly as often as chance.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Literal, TypeAlias

from graftlm.data.sample import NumberedSamples, Sample
from graftlm.data.scenes import COLOURS, PLACES, SHAPES, SPLIT_SIZE, SPLITS, Family, Scenes, picture_of
from graftlm.data.sentence import Image, Media, Part, Sentence, Text
from graftlm.errors import DataError

Concept: TypeAlias = Literal["shape", "colour"]
Names: TypeAlias = Literal["made-up", "paper", "real"]

PAPER_NAMES = ("dax", "blicket", "shously", "slation", "perpo")
"""The names of Open-Ended miniImageNet; kept for evaluation, never among the made-up ones."""

QUESTION = "Question: What is this? Answer: This is a"
MOST_WAYS = len(PAPER_NAMES)

# Two syllables of consonant and vowel, sometimes closed: none of the paper's names is built so.
_ONSETS, _VOWELS, _CODAS = "bdfgjklmnprtvwz", "aeiou", ("", "b", "k", "m", "p", "sk", "t", "x", "zz")
MADE_UP_NAMES = tuple("".join(parts) for parts in product(_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS))

# A thing, and the words of captions that name it.
PHOTO_CLASSES: dict[str, str] = {
    "dog": r"dogs?|puppy|puppies|poodle|collie|greyhounds?",
    "bicycle": r"bicycles?|bikes?|cyclists?|bicyclists?|biker|bikers",
    "horse": r"horses?|pony",
    "skier": r"skiers?|skiing|skis?|snowboard\w*",
    "surfer": r"surf\w*",
    "climber": r"climb\w*",
    "footballer": r"football|soccer",
    "basketball": r"basketball",
    "motorcycle": r"motorcycl\w+|motorbikes?|motocross",
    "swimmer": r"swim\w*|pool",
    "skateboard": r"skateboard\w*|skater",
    "bird": r"birds?|seagulls?|ducks?|goose|geese",
}
_AGREEING = 3  # captions of a photo that name its class


@dataclass(frozen=True, slots=True)
class Episode:
    """Pictures with what is said of each, and new pictures whose names are asked for.

    Attributes:
        names: all names told, in the order of the instruction
        examples: picture and words ("This is a dax."), in the order of the prompt
        question: the words behind a new picture
        asked: new pictures and their names; the last is what an evaluation asks
    """

    names: tuple[str, ...]
    examples: tuple[tuple[Media, str], ...]
    question: str
    asked: tuple[tuple[Media, str], ...]

    def sentence(self, *, induction: bool = False, repeats: int = 0) -> Sentence:
        """The episode as a prompt whose answers are targets.

        Args:
            induction: whether "Answer with dax or blicket." comes first
            repeats: how often all examples are told again
        """
        parts: list[Part] = [Text(f"Answer with {' or '.join(self.names)}.\n")] if induction else []
        for picture, words in self.examples * (1 + repeats):
            parts += [Image(picture), Text(f"{words}\n")]
        for place, (picture, name) in enumerate(self.asked):
            parts += [Text("\n")] if place else []
            parts += [Image(picture), Text(self.question), Text(f" {name}", target=True)]
        return Sentence(tuple(parts))

    def sample(self, key: str, *, induction: bool = False) -> Sample:
        """The episode as a sample; `metadata["episode"]` is the episode itself."""
        sentence = self.sentence(induction=induction)
        return Sample(sentence, key, (self.asked[-1][1],), {"episode": self, "names": self.names})


@dataclass(frozen=True, slots=True)
class Plan:
    """What an episode is like.

    Attributes:
        ways: classes
        shots: different examples of each class (the paper's inner-shots)
        queries: new pictures that are asked about, one after the other
        concept: what tells the classes of scenes apart; None: shape and colour in turn
        names: invented anew in every episode, the paper's, or the true ones ("Real-Name")
    """

    ways: int = 2
    shots: int = 1
    queries: int = 1
    concept: Concept | None = None
    names: Names = "made-up"

    def __post_init__(self) -> None:
        if not (2 <= self.ways <= MOST_WAYS and self.shots >= 1 and self.queries >= 1):
            raise DataError(
                f"binding: expected 2 to {MOST_WAYS} ways and at least 1 shot and query, "
                f"found {self.ways}, {self.shots} and {self.queries}"
            )


class Episodes(NumberedSamples):
    """Episodes over generated scenes, drawn when they are read; each depends on seed, split and index alone.

    Args:
        plans: taken in turn
        induction: fraction of the episodes that begin with the instruction
        beside: families of scenes that are given in turn with episodes
    """

    what = "episode"

    def __init__(
        self,
        split: str = "train",
        limit: int = 1000,
        *,
        seed: int = 0,
        plans: Sequence[Plan] = (Plan(),),
        induction: float = 0.5,
        beside: Sequence[Family] = (),
    ) -> None:
        self._scenes = [Scenes(split, limit, seed=seed, families=(family,)) for family in beside]
        split_name = Scenes(split, limit).split  # refuses a split or a limit that is none
        if not plans:
            raise DataError("binding: expected at least one plan of ways and shots, found none")
        self.split = SPLITS.index(split_name)
        self.seed = seed
        self.plans = tuple(plans)
        self.induction = induction
        self._limit = limit

    def __len__(self) -> int:
        return self._limit

    def make(self, number: int) -> Sample:
        """Episode `number`; the plans, and the scenes beside them, take turns."""
        place, kind = divmod(number, 1 + len(self._scenes))
        if kind:
            return self._scenes[kind - 1][place]
        turn, which = divmod(place, len(self.plans))
        return _of_scenes(self.plans[which], self.seed, self.split * SPLIT_SIZE + which, turn, self.induction)


@lru_cache(maxsize=4096)
def _of_scenes(plan: Plan, seed: int, series: int, turn: int, induction: float) -> Sample:
    """Episode number `turn` of a series."""
    key = f"binding-{seed}-{series}-{turn}"
    rng = random.Random(f"graftlm {key} {plan}")
    concepts: tuple[Concept, ...] = ("shape", "colour") if plan.concept is None else (plan.concept,)
    turn, which = divmod(turn, len(concepts))
    # "a orange star": an article that does not fit would tell the answer.
    colours = [colour for colour in COLOURS if plan.names != "real" or colour[0] not in "aeiou"]
    if concepts[which] == "shape":
        colour = rng.choice(colours)
        pairs = [(colour, kind) for kind in rng.sample(SHAPES, plan.ways)]
        true = [kind for _, kind in pairs]
    else:
        kind = rng.choice(SHAPES)
        pairs = [(colour, kind) for colour in rng.sample(colours, plan.ways)]
        true = [f"{colour} {kind}" for colour, _ in pairs]
    draw = [partial(_drawn, kind, colour, rng) for colour, kind in pairs]
    return _episode(plan, turn, true, draw, rng).sample(key, induction=rng.random() < induction)


def _drawn(kind: str, colour: str, rng: random.Random) -> Media:
    return picture_of(kind, colour, rng.choice(tuple(PLACES)), rng)


def photo_episodes(samples: Sequence[Sample], plan: Plan, count: int, *, seed: int = 0) -> list[Sample]:
    """Episodes over captioned photos; the classes are things that the captions of a photo agree on.

    Raises: DataError when too few things have photos enough.
    """
    wanted = plan.shots + plan.queries
    classes = {name: found for name, found in photo_classes(samples).items() if len(found) >= wanted}
    if len(classes) < plan.ways:
        raise DataError(
            f"binding: expected {plan.ways} things with {wanted} photos each that their captions agree on, found "
            f"{', '.join(classes) or 'none'}; use more photos, or leave the data out for generated scenes"
        )
    episodes = []
    for turn in range(count):
        key = f"binding-photos-{seed}-{turn}"
        rng = random.Random(f"graftlm {key} {plan}")
        true = rng.sample(sorted(classes), plan.ways)
        photos = [iter(rng.sample(classes[name], wanted)) for name in true]
        episodes.append(_episode(plan, turn, true, [partial(next, one) for one in photos], rng).sample(key))
    return episodes


def photo_classes(samples: Sequence[Sample]) -> Mapping[str, list[Media]]:
    """Photos by the thing that most of their captions name, and no caption another thing; every photo once."""
    patterns = {name: re.compile(rf"\b(?:{words})\b") for name, words in PHOTO_CLASSES.items()}
    found: dict[str, list[Media]] = {name: [] for name in patterns}
    seen: set[str] = set()
    for sample in samples:
        media = sample.sentence.prompt().media()
        if sample.stem in seen or len(media) != 1 or not isinstance(media[0], Image):
            continue
        seen.add(sample.stem)
        captions = [text.lower() for text in sample.references]
        named = {name: sum(map(bool, map(words.search, captions))) for name, words in patterns.items()}
        there = [name for name, number in named.items() if number]
        if len(there) == 1 and named[there[0]] >= _AGREEING:
            found[there[0]].append(media[0].source)
    return found


def _episode(
    plan: Plan, turn: int, true: Sequence[str], draw: Sequence[Callable[[], Media]], rng: random.Random
) -> Episode:
    """An episode over classes (ways) with their true names; `draw` gives another picture of each when it is called."""
    ways = plan.ways
    asked, last, shift = turn % ways, turn // ways % ways, turn // ways**2 % ways
    told = _names(plan, true, rng)
    names = [told[(way + shift) % ways] for way in range(ways)] if plan.names != "real" else list(told)
    order: list[int] = []
    for _ in range(plan.shots):
        order += rng.sample(range(ways), ways)
    others = [way for way in order[-ways:] if way != last]
    order = [*order[:-ways], *others, last]
    examples = tuple((draw[way](), f"This is a {names[way]}.") for way in order)
    queries = [*(rng.randrange(ways) for _ in range(plan.queries - 1)), asked]
    return Episode(tuple(told), examples, QUESTION, tuple((draw[way](), names[way]) for way in queries))


def _names(plan: Plan, true: Sequence[str], rng: random.Random) -> Sequence[str]:
    if plan.names == "real":
        return true
    return PAPER_NAMES[: plan.ways] if plan.names == "paper" else rng.sample(MADE_UP_NAMES, plan.ways)
