"""Episodes of fast concept binding: their words, their balance, and names that are nobody else's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftlm.data import binding
from graftlm.data.binding import (
    MADE_UP_NAMES,
    PAPER_NAMES,
    Episode,
    Episodes,
    Plan,
    photo_classes,
    photo_episodes,
)
from graftlm.data.ledger import Ledger
from graftlm.data.readers import read
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import ConfigError, DataError
from tests.data.readers import files


def written(sentence: Sentence) -> str:
    """A sentence as one string, pictures by their source, targets between asterisks."""
    words = []
    for part in sentence:
        if isinstance(part, Text):
            words.append(f"*{part.content}*" if part.target else part.content)
        else:
            words.append(f"<{getattr(part.source, 'decode', lambda part=part: Path(part.source).name)()}>")  # type: ignore[union-attr]
    return "".join(words)


EPISODE = Episode(
    ("dax", "blicket"),
    ((b"1", "This is a dax."), (b"2", "This is a blicket.")),
    binding.QUESTION,
    ((b"3", "blicket"), (b"4", "dax")),
)


def test_an_episode_is_said_in_the_words_of_the_paper() -> None:
    one = Episode(EPISODE.names, EPISODE.examples, EPISODE.question, EPISODE.asked[:1])
    told = "<1>This is a dax.\n<2>This is a blicket.\n"
    asked = "<3>Question: What is this? Answer: This is a* blicket*"
    assert written(one.sentence()) == told + asked
    assert written(one.sentence(induction=True)) == "Answer with dax or blicket.\n" + told + asked
    assert written(one.sentence(repeats=2)) == told * 3 + asked


def test_several_pictures_are_asked_about_one_after_the_other() -> None:
    assert written(EPISODE.sentence()).endswith(
        "<3>Question: What is this? Answer: This is a* blicket*\n<4>Question: What is this? Answer: This is a* dax*"
    )
    assert EPISODE.sample("k").references == ("dax",)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures that say what they show."""
    numbers = iter(range(10**6))

    def picture_of(kind: str, colour: str, place: str, rng: object) -> bytes:
        return f"{colour} {kind} {next(numbers)}".encode()

    monkeypatch.setattr(binding, "picture_of", picture_of)
    binding._of_scenes.cache_clear()
    yield
    binding._of_scenes.cache_clear()


def shown_by(source: object) -> tuple[str, str]:
    assert isinstance(source, bytes)
    colour, kind, _ = source.decode().split()
    return colour, kind


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("ways", [2, 3, 5])
def test_only_the_concept_tells_classes_apart_and_names_go_with_it(ways: int) -> None:
    for number, sample in enumerate(Episodes("train", 60, plans=[Plan(ways, 2, 2)], seed=4)):
        episode = sample.metadata["episode"]
        assert len(episode.names) == len(set(episode.names)) == ways
        by_name: dict[str, set[tuple[str, str]]] = {}
        for source, words in episode.examples:
            by_name.setdefault(words.removeprefix("This is a ").removesuffix("."), set()).add(shown_by(source))
        assert set(by_name) == set(episode.names)
        classes = [pair for (pair,) in by_name.values()]
        colours, kinds = {colour for colour, _ in classes}, {kind for _, kind in classes}
        assert (len(colours), len(kinds)) == ((ways, 1) if number % 2 else (1, ways))
        for source, name in episode.asked:
            assert by_name[name] == {shown_by(source)}
        pictures = [source for source, _ in (*episode.examples, *episode.asked)]
        assert len(set(pictures)) == 2 * ways + 2


@pytest.mark.usefixtures("told")
def test_real_names_say_what_is_shown_with_their_article() -> None:
    for sample in Episodes("val", 120, plans=[Plan(names="real", ways=3)]):
        episode = sample.metadata["episode"]
        for source, words in episode.examples:
            colour, kind = shown_by(source)
            assert words in (f"This is a {kind}.", f"This is a {colour} {kind}.")
            assert colour != "orange"


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(("ways", "count"), [(2, 200), (5, 200)])
def test_a_model_that_does_not_look_is_right_as_often_as_chance(ways: int, count: int) -> None:
    episodes = [
        sample.metadata["episode"] for sample in Episodes("val", count, plans=[Plan(ways, names="paper")], induction=0)
    ]
    answers = [episode.asked[-1][1] for episode in episodes]
    for name in PAPER_NAMES[:ways]:
        assert answers.count(name) == count // ways
    last = [words for episode in episodes for _, words in episode.examples[-1:]]
    assert sum(f"a {answer}." in words for answer, words in zip(answers, last, strict=True)) == count // ways


def test_an_episode_depends_only_on_seed_split_and_index() -> None:
    def prints(episodes: Episodes) -> list[Sentence]:
        return [sample.sentence for sample in episodes]

    forwards = prints(Episodes("val", 6, seed=3))
    binding._of_scenes.cache_clear()
    longer = Episodes("val", 20, seed=3)
    assert [longer[index].sentence for index in reversed(range(6))] == forwards[::-1]
    assert prints(Episodes("val", 6, seed=4)) != forwards
    seen = [
        part.source for split in ("train", "val", "test") for one in prints(Episodes(split, 8)) for part in one.media()
    ]  # type: ignore[union-attr]
    assert len(seen) == len(set(seen)) == 72
    assert all(isinstance(source, bytes) and source.startswith(b"\x89PNG") for source in seen)


def test_made_up_names_are_many_and_none_is_the_papers() -> None:
    assert not set(MADE_UP_NAMES) & set(PAPER_NAMES)
    assert not any(name.startswith(other) for name in MADE_UP_NAMES for other in PAPER_NAMES)
    assert len(set(MADE_UP_NAMES)) == len(MADE_UP_NAMES) > 10_000
    samples = read({"reader": "binding", "limit": 40})
    names = [name for sample in samples for name in sample.metadata["names"]]
    assert set(names) <= set(MADE_UP_NAMES)
    assert len(set(names)) > 70


def test_a_recipe_mixes_ways_shots_and_captioned_scenes() -> None:
    spec = {"reader": "binding", "limit": 24, "ways": [2, 3], "shots": [1, 2], "queries": 2, "beside": ["position"]}
    samples = list(read({**spec, "split": "val", "induction": 1}))
    assert len(samples) == 24
    assert [sample.metadata.get("family") for sample in samples[:4]] == [None, "position"] * 2
    episodes = [sample.metadata["episode"] for sample in samples[::2]]
    kinds = Counter((len(one.names), len(one.examples) // len(one.names)) for one in episodes)
    assert kinds == {(2, 1): 3, (2, 2): 3, (3, 1): 3, (3, 2): 3}
    for sample in samples[::2]:
        assert sample.sentence.text().startswith("Answer with ")
        assert sum(part.target for part in sample.sentence) == 2
    assert len({sample.key for sample in samples}) == 24
    plain = list(read({**spec, "induction": 0}))
    assert not any("Answer with" in sample.sentence.text() for sample in plain)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"ways": [6]}, DataError, "expected 2 to 5 ways"),
        ({"shots": [0]}, DataError, "at least 1 shot"),
        ({"split": "dev"}, DataError, "found 'dev'"),
        ({"way": [2]}, ConfigError, "did you mean 'ways'"),
        ({"names": "nonsense"}, ConfigError, "names"),
    ],
)
def test_wrong_specs_are_refused_in_words(spec: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read({"reader": "binding", **spec})


def photo(number: int, *captions: str) -> Sample:
    return Sample(Sentence.of(Image(f"{number}.jpg")), f"{number}.jpg", captions)


def test_photos_are_of_a_thing_when_most_captions_name_it_and_none_another() -> None:
    dog = ["a dog runs", "the DOG plays", "two dogs", "an animal", "grass"]
    samples = [
        photo(0, *dog),
        photo(1, *dog[:2], "grass", "x", "y"),  # two captions are not enough
        photo(2, *dog[:4], "a dog by a horse"),  # another thing
        photo(3, "a doghouse", "doghouses", "a doghouse stands"),  # a part of a word
        photo(0, *dog),  # the same photo again
        photo(4, "a horse", "horses", "a pony"),
    ]
    found = photo_classes(samples)
    assert found["dog"] == ["0.jpg"]
    assert found["horse"] == ["4.jpg"]
    assert sum(map(len, found.values())) == 2


def test_episodes_over_photos_bind_names_to_things() -> None:
    samples = [photo(n, *[f"a {'dog' if n < 5 else 'horse'}"] * 5) for n in range(10)]
    episodes = photo_episodes(samples, Plan(2, 3, names="paper"), 40, seed=1)
    assert len(episodes) == 40
    for sample in episodes:
        episode = sample.metadata["episode"]
        things: dict[str, set[bool]] = {}
        for source, words in (*episode.examples, *((picture, f"a {name}.") for picture, name in episode.asked)):
            things.setdefault(words.split()[-1], set()).add(int(str(source).partition(".")[0]) < 5)
        assert sorted(things.values(), key=str) == [{False}, {True}]
        assert len({source for source, _ in (*episode.examples, *episode.asked)}) == 7
    assert Counter(sample.references[0] for sample in episodes) == {"dax": 20, "blicket": 20}
    with pytest.raises(DataError, match=r"expected 2 things with 6 photos each .* found none"):
        photo_episodes(samples, Plan(2, 5), 1)


def test_the_papers_files_are_read_as_they_are(tmp_path: Path) -> None:
    samples = read({"path": str(files.open_ended(tmp_path))})
    first, second, third = samples
    assert written(first.sentence) == (
        "<a.jpg>This is a dax.\n<b.jpg>This is a blicket.\n<c.jpg>Question: What is this? Answer: This is a* blicket*"
    )
    assert first.metadata["names"] == ("dax", "blicket")
    assert second.metadata["names"] == ("blicket", "dax")  # examples by their numbers, not as the record lists them
    assert second.references == ("blicket",)
    assert third.metadata["names"] == ("golden retriever", "ant")
    assert third.references == ("golden retriever",)


def test_records_that_are_no_episodes_go_to_the_ledger(tmp_path: Path) -> None:
    folder = files.open_ended(tmp_path)
    (file,) = folder.glob("*.json")
    good = json.loads(file.read_text("utf-8"))[0]
    bad = [
        {**good, "answer": "wug"},
        {**good, "caption_1": "dax"},
        {**good, "caption_2": 3},
        {**good, "image_1": "n01/gone.jpg"},
        {key: value for key, value in good.items() if key != "question"},
        {"question": "q", "question_image": "n01/a.jpg", "answer": "a"},
    ]
    file.write_text(json.dumps([good, *bad]), encoding="utf-8")
    ledger = Ledger()
    assert len(read({"path": str(file), "reader": "open_ended"}, ledger)) == 1
    assert [entry.reason for entry in ledger.entries] == [
        "answer-not-in-choices",
        "wrong-type",
        "wrong-type",
        "missing-file",
        "missing-column",
        "missing-column",
    ]
    assert "expected the answer among the names told (dax, blicket), found 'wug'" in ledger.entries[0].message
