"""Generated scenes: pictures of coloured shapes with captions and questions, as many as asked, without a file.

Every scene depends on ``(seed, split, index)`` alone, so scenes can be read in any order, by any process, and two
processes draw the same bytes. A split has its own range of scene numbers, so no picture of one split is in another;
the captions are shared: what a held-out scene asks is an answer seen in training, of a picture never seen.

Families:
    position: "A red star in the top left." 8 colours x 5 shapes x 5 places = 200 captions, in balanced order:
        every run of 200 scenes that starts at a multiple of 200 holds each caption once
    count: "Three blue circles.", 1 to 5 of one shape
    relation: "A red star left of a green square."
    question: a scene of one of these kinds with a question and its short answer
        ("What colour is the star?" - "red"; "How many circles are there?" - "three"; "Where is the star?" - "top left")

Colours: red, orange, yellow, green, blue, purple, black, white. Shapes: circle, square, triangle, star, cross.
Places: top left, top right, bottom left, bottom right, centre. Size, place, angle, shade and background vary.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image as Pictures
from PIL import ImageDraw

from graftlm.data.sample import NumberedSamples, Sample
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Family: TypeAlias = Literal["position", "count", "relation", "question"]
Split: TypeAlias = Literal["train", "val", "test"]

SIZE_PX = 224
SPLIT_SIZE = 10_000_000
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FAMILIES: tuple[Family, ...] = ("position", "count", "relation", "question")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (247, 139, 24),
    "yellow": (250, 228, 40),
    "green": (38, 156, 62),
    "blue": (36, 78, 204),
    "purple": (138, 44, 166),
    "black": (16, 16, 18),
    "white": (248, 248, 246),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLACES: dict[str, tuple[int, int]] = {
    "top left": (56, 56),
    "top right": (168, 56),
    "bottom left": (56, 168),
    "bottom right": (168, 168),
    "centre": (112, 112),
}
NUMBERS = ("one", "two", "three", "four", "five")
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

_POSITION_CAPTIONS = tuple(product(COLOURS, SHAPES, PLACES))
_ANTIALIAS = 4
_CACHED_DRAWINGS = 8192  # 8 to 20 kB each


@dataclass(frozen=True, slots=True)
class Shape:
    """One drawn shape: centre and radius in pixels, angle in degrees."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    shade: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows and what is said about it; `question` is empty where the caption is asked for."""

    key: str
    family: Family
    shapes: tuple[Shape, ...]
    background: tuple[tuple[int, int, int], ...]
    caption: str
    question: str = ""
    answer: str = ""

    def draw(self) -> PILImage:
        """The RGB picture, 224 x 224, with smooth edges."""
        corners = Pictures.new("RGB", (2, 2))
        corners.putdata(self.background)
        picture = corners.resize((SIZE_PX, SIZE_PX), Pictures.Resampling.BILINEAR)
        for shape in self.shapes:
            _draw_shape(picture, shape)
        return picture


class Scenes(NumberedSamples):
    """Samples of one split, drawn when they are read.

    `source` of each picture is the bytes of a PNG file, so its content hash is that of the file.
    """

    what = "scene"

    def __init__(
        self, split: str = "train", limit: int = 1000, *, seed: int = 0, families: Sequence[Family] = ("position",)
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"scenes: expected split to be one of {', '.join(SPLITS)}, found {split!r}")
        if not 0 <= limit <= SPLIT_SIZE:
            raise DataError(f"scenes: expected limit between 0 and {SPLIT_SIZE}, found {limit}")
        unknown = [family for family in families if family not in FAMILIES]
        if unknown or not families:
            raise DataError(f"scenes: expected families among {', '.join(FAMILIES)}, found {list(families)}")
        self.split: Split = SPLITS[SPLITS.index(split)]
        self.seed = seed
        self.families = tuple(families)
        self._limit = limit

    def __len__(self) -> int:
        return self._limit

    def make(self, number: int) -> Sample:
        """Scene `number`; the families take turns."""
        family = self.families[number % len(self.families)]
        return _sample(family, self.seed, self.split, number // len(self.families))


def scene(family: Family, seed: int, split: Split, index: int) -> Scene:
    """Scene number `index` of a family and split."""
    number = SPLITS.index(split) * SPLIT_SIZE + index
    key = f"{family}-{seed}-{number}"
    rng = random.Random(f"graftlm scene {key}")  # a string seed is hashed with SHA-512: the same everywhere
    make = {"position": _position, "count": _count, "relation": _relation, "question": _question}[family]
    shapes, caption, question, answer = make(rng, seed, number)
    return Scene(key, family, shapes, _background(rng), caption, question, answer)


def picture_of(kind: str, colour: str, place: str, rng: random.Random) -> bytes:
    """One shape at a place as the bytes of a PNG file; its size, angle, shade and background are drawn by `rng`."""
    shape = _placed(rng, kind, colour, place)
    return _png(Scene("", "position", (shape,), _background(rng), ""))


@lru_cache(maxsize=_CACHED_DRAWINGS)
def _sample(family: Family, seed: int, split: Split, index: int) -> Sample:
    found = scene(family, seed, split, index)
    picture = Image(_png(found))
    metadata: dict[str, Any] = {"family": family, "caption": found.caption}
    if not found.question:
        return Sample(Sentence.of(picture, Text(found.caption, target=True)), found.key, (found.caption,), metadata)
    asked = Text(f"Question: {found.question} Answer:")
    sentence = Sentence.of(picture, asked, Text(f" {found.answer}", target=True))
    return Sample(sentence, found.key, (found.answer,), metadata | {"question": found.question})


def _png(found: Scene) -> bytes:
    buffer = io.BytesIO()
    found.draw().save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


_Made: TypeAlias = tuple[tuple[Shape, ...], str, str, str]


def _position(rng: random.Random, seed: int, number: int) -> _Made:
    block, place_in_block = divmod(number, len(_POSITION_CAPTIONS))
    order = random.Random(f"graftlm order {seed} {block}").sample(_POSITION_CAPTIONS, len(_POSITION_CAPTIONS))
    colour, kind, place = order[place_in_block]
    return (_placed(rng, kind, colour, place),), f"{_named(colour, kind)} in the {place}.", "", ""


def _placed(rng: random.Random, kind: str, colour: str, place: str) -> Shape:
    return _shape(rng, kind, colour, PLACES[place], jitter=14, radius=(28.0, 41.0))


def _count(rng: random.Random, seed: int, number: int) -> _Made:
    count, kind, colour = rng.randint(1, 5), rng.choice(SHAPES), rng.choice(tuple(COLOURS))
    noun = kind if count == 1 else _plural(kind)
    cells = rng.sample([(40 + 72 * column, 40 + 72 * row) for row in range(3) for column in range(3)], count)
    shapes = tuple(_shape(rng, kind, colour, cell, jitter=9, radius=(18.0, 27.0)) for cell in cells)
    return shapes, f"{NUMBERS[count - 1].capitalize()} {colour} {noun}.", "", ""


def _relation(rng: random.Random, seed: int, number: int) -> _Made:
    (first, second), (colour, other) = rng.sample(SHAPES, 2), rng.sample(tuple(COLOURS), 2)
    relation = rng.choice(tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    apart = rng.uniform(42.0, 56.0)
    here, there = (112 + dx * apart, 112 + dy * apart), (112 - dx * apart, 112 - dy * apart)
    shapes = (
        _shape(rng, first, colour, here, jitter=12, radius=(20.0, 30.0)),
        _shape(rng, second, other, there, jitter=12, radius=(20.0, 30.0)),
    )
    return shapes, f"{_named(colour, first)} {relation} {_lower(_named(other, second))}.", "", ""


def _question(rng: random.Random, seed: int, number: int) -> _Made:
    kind = rng.choice(("colour", "shape", "where", "count", "relation"))
    if kind == "count":
        shapes, caption, _, _ = _count(rng, seed, number)
        return shapes, caption, f"How many {_plural(shapes[0].kind)} are there?", NUMBERS[len(shapes) - 1]
    if kind == "relation":
        shapes, caption, _, _ = _relation(rng, seed, number)
        relation = next(words for words in RELATIONS if f" {words} " in caption)
        first, second = shapes
        question = f"What is {relation} the {second.colour} {second.kind}?"
        return shapes, caption, question, _lower(_named(first.colour, first.kind))
    shapes, caption, _, _ = _position(rng, seed, rng.randrange(SPLIT_SIZE))
    colour, shape = shapes[0].colour, shapes[0].kind
    place = caption.partition(" in the ")[2].removesuffix(".")
    question, answer = {
        "colour": (f"What colour is the {shape}?", colour),
        "shape": (f"Which shape is {colour}?", shape),
        "where": (f"Where is the {shape}?", place),
    }[kind]
    return shapes, caption, question, answer


def _named(colour: str, kind: str) -> str:
    return f"{'An' if colour[0] in 'aeiou' else 'A'} {colour} {kind}"


def _lower(words: str) -> str:
    return words[0].lower() + words[1:]


def _plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def _shape(
    rng: random.Random, kind: str, colour: str, at: tuple[float, float], *, jitter: int, radius: tuple[float, float]
) -> Shape:
    x, y = (centre + rng.uniform(-jitter, jitter) for centre in at)
    red, green, blue = (min(255, max(0, channel + rng.randint(-14, 14))) for channel in COLOURS[colour])
    return Shape(kind, colour, x, y, rng.uniform(*radius), rng.uniform(0.0, 360.0), (red, green, blue))


def _background(rng: random.Random) -> tuple[tuple[int, int, int], ...]:
    """Four corners of a soft gradient: mid grey, hardly tinted, so that black, white and every hue stand out."""
    grey = rng.randint(95, 165)
    tint = [rng.randint(-6, 6) for _ in range(3)]
    corners = []
    for _ in range(4):
        light = grey + rng.randint(-22, 22)
        corners.append((light + tint[0], light + tint[1], light + tint[2]))
    return tuple(corners)


def _draw_shape(picture: PILImage, shape: Shape) -> None:
    reach = math.ceil(shape.radius) + 1
    left, top = math.floor(shape.x) - reach, math.floor(shape.y) - reach
    side = 2 * reach + 1
    mask = Pictures.new("L", (side * _ANTIALIAS, side * _ANTIALIAS), 0)
    outline = [((x - left) * _ANTIALIAS, (y - top) * _ANTIALIAS) for x, y in _outline(shape)]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    picture.paste(shape.shade, (left, top), mask.reduce(_ANTIALIAS))


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners of the shape in pixels; all corners lie within the radius."""
    if shape.kind == "cross":
        arm = 0.30
        turns = [(1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm), (-1, arm)]
        unit = [(0.95 * x, 0.95 * y) for x, y in turns + [(-x, -y) for x, y in turns]]
    else:
        corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[shape.kind]
        reach = [0.42 if shape.kind == "star" and index % 2 else 1.0 for index in range(corners)]
        angles = [2 * math.pi * index / corners for index in range(corners)]
        unit = [(far * math.cos(angle), far * math.sin(angle)) for far, angle in zip(reach, angles, strict=True)]
    cos, sin = math.cos(math.radians(shape.angle)), math.sin(math.radians(shape.angle))
    return [
        (shape.x + shape.radius * (x * cos - y * sin), shape.y + shape.radius * (x * sin + y * cos)) for x, y in unit
    ]
