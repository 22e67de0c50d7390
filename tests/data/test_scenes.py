"""Generated scenes: repeatable, disjoint between splits, balanced, and true to their words."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image as Pictures

from graftlm.data.readers import read
from graftlm.data.scenes import COLOURS, FAMILIES, PLACES, SIZE_PX, Scenes, Shape, scene
from graftlm.data.sentence import Image
from graftlm.errors import ConfigError, DataError


def picture_bytes(sample) -> bytes:
    part = sample.sentence.parts[0]
    assert isinstance(part, Image)
    assert isinstance(part.source, bytes)
    return part.source


def digest(scenes: Scenes) -> str:
    pixels = (Pictures.open(io.BytesIO(picture_bytes(sample))).tobytes() for sample in scenes)
    words = (sample.sentence.text().encode() for sample in scenes)
    return hashlib.sha256(b"".join([*pixels, *words])).hexdigest()


def test_a_scene_depends_only_on_seed_split_and_index() -> None:
    forwards = [picture_bytes(sample) for sample in Scenes("val", 12, seed=3, families=FAMILIES)]
    scenes = Scenes("val", 40, seed=3, families=FAMILIES)
    assert [picture_bytes(scenes[index]) for index in reversed(range(12))] == forwards[::-1]
    assert scene("relation", 3, "val", 2) == scene("relation", 3, "val", 2)
    assert scene("relation", 3, "val", 2) != scene("relation", 4, "val", 2)


def test_another_process_draws_the_same_scenes() -> None:
    program = (
        "from tests.data.test_scenes import Scenes, FAMILIES, digest\n"
        "print(digest(Scenes('train', 16, seed=5, families=FAMILIES)))"
    )
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(["src", "."]), "PYTHONHASHSEED": "7"},
    )
    assert other.stdout.strip() == digest(Scenes("train", 16, seed=5, families=FAMILIES))


def test_two_threads_draw_the_same_scenes() -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: digest(Scenes("train", 24, seed=8)), range(2)))
    assert both[0] == both[1]


def test_no_picture_and_no_key_is_in_two_splits() -> None:
    pictures: list[bytes] = []
    keys: list[str] = []
    for split in ("train", "val", "test"):
        for sample in Scenes(split, 120, families=FAMILIES):
            pictures.append(picture_bytes(sample))
            keys.append(sample.key)
    assert len(set(pictures)) == len(pictures) == 360
    assert len(set(keys)) == 360


def test_every_200_position_scenes_hold_each_of_the_200_captions_once() -> None:
    train = Counter(scene("position", 0, "train", index).caption for index in range(200))
    held_out = Counter(scene("position", 0, "test", index).caption for index in range(200, 400))
    assert len(train) == 200
    assert train == held_out
    assert "A red star in the top left." in train
    assert "An orange circle in the centre." in train


def test_the_order_of_captions_differs_between_blocks() -> None:
    first = [scene("position", 0, "train", index).caption for index in range(200)]
    second = [scene("position", 0, "train", index).caption for index in range(200, 400)]
    assert first != second


@pytest.mark.parametrize("index", range(0, 200, 7))
def test_the_picture_shows_what_the_caption_says(index: int) -> None:
    found = scene("position", 1, "test", index)
    (shape,) = found.shapes
    words = found.caption.removesuffix(".").split(" ", 3)
    assert words[1:3] == [shape.colour, shape.kind]
    place = words[3].removeprefix("in the ")
    nearest = min(PLACES, key=lambda name: (PLACES[name][0] - shape.x) ** 2 + (PLACES[name][1] - shape.y) ** 2)
    assert place == nearest
    pixel = found.draw().getpixel((round(shape.x), round(shape.y)))
    named = min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))
    assert named == shape.colour


def test_shapes_are_drawn_whole_and_with_smooth_edges() -> None:
    for index in range(60):
        for family in FAMILIES:
            for shape in scene(family, 2, "train", index).shapes:
                assert shape.radius <= min(shape.x, shape.y, SIZE_PX - shape.x, SIZE_PX - shape.y)
    picture = scene("position", 2, "train", 0).draw()
    assert picture.size == (SIZE_PX, SIZE_PX)
    assert picture.mode == "RGB"
    assert len(picture.getcolors(SIZE_PX**2) or []) > 50


def test_counts_count_and_no_two_shapes_touch() -> None:
    numbers = {"One": 1, "Two": 2, "Three": 3, "Four": 4, "Five": 5}
    for index in range(120):
        found = scene("count", 0, "train", index)
        assert numbers[found.caption.split()[0]] == len(found.shapes)
        noun = found.shapes[0].kind
        plural = {"cross": "crosses"}.get(noun, f"{noun}s")
        assert found.caption.endswith(f" {noun}." if len(found.shapes) == 1 else f" {plural}.")
        assert not any(touch(a, b) for a in found.shapes for b in found.shapes if a is not b)


def touch(one: Shape, two: Shape) -> bool:
    return (one.x - two.x) ** 2 + (one.y - two.y) ** 2 < (one.radius + two.radius) ** 2


def test_relations_hold_in_the_picture() -> None:
    for index in range(120):
        found = scene("relation", 0, "train", index)
        first, second = found.shapes
        assert not touch(first, second)
        holds = {
            "left of": first.x < second.x - 20,
            "right of": first.x > second.x + 20,
            "above": first.y < second.y - 20,
            "below": first.y > second.y + 20,
        }
        said = next(words for words in holds if f" {words} a" in found.caption)
        assert holds[said]


def test_questions_are_asked_before_their_answer_and_answered_rightly() -> None:
    kinds = Counter()
    for index in range(150):
        found = scene("question", 0, "train", index)
        first = found.question.split()[0] + " " + found.question.split()[1]
        kinds[first] += 1
        if found.question.startswith("What colour"):
            assert found.answer == found.shapes[0].colour
        elif found.question.startswith("How many"):
            assert found.answer == ("one", "two", "three", "four", "five")[len(found.shapes) - 1]
        elif found.question.startswith("Where"):
            assert found.answer in PLACES
        else:
            assert found.answer.split()[-1] == found.shapes[0].kind
    assert {"What colour", "Which shape", "Where is", "How many", "What is"} == set(kinds)
    sample = Scenes("train", 1, families=("question",))[0]
    assert sample.sentence.prompt().text().startswith("Question: ")
    assert sample.sentence.targets().text() == f" {sample.references[0]}"


def test_scenes_behave_as_a_sequence() -> None:
    scenes = Scenes("train", 9, families=("position", "count"))
    assert len(scenes) == 9
    assert scenes[-1].key == scenes[8].key == scenes[7:][1].key
    assert [sample.metadata["family"] for sample in scenes[:4]] == ["position", "count"] * 2
    with pytest.raises(IndexError):
        scenes[9]
    assert scenes[0].sentence.targets().text() == scenes[0].references[0]


def test_wrong_splits_families_and_limits_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="expected split to be one of train, val, test, found 'dev'"):
        Scenes("dev", 3)
    with pytest.raises(DataError, match="expected families among position, count"):
        Scenes("train", 3, families=("colours",))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected limit between 0 and"):
        Scenes("train", -1)


def test_a_recipe_reads_scenes_without_a_path() -> None:
    samples = read({"reader": "scenes", "split": "val", "limit": 6, "families": ["position", "question"], "seed": 2})
    assert isinstance(samples, Scenes)
    same = Scenes("val", 6, seed=2, families=("position", "question"))
    assert [sample.key for sample in samples] == [sample.key for sample in same]
    with pytest.raises(ConfigError, match="did you mean 'families'"):
        read({"reader": "scenes", "familys": ["count"]})
    with pytest.raises(DataError, match="found 'dev'"):
        read({"reader": "scenes", "split": "dev"})
