"""Controls of films: black frames, as many as there were, and another sample's film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Part, Sentence, Text, Video
from graftlm.data.video import load_frames
from graftlm.errors import DataError
from graftlm.evaluate.controls import LEAD_IN, blind, shows_pictures, shuffled, text_only
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.lm.decode import Decoding
from tests.evaluate.toys import toy
from tests.pictures import picture


@pytest.fixture
def films(tmp_path: Path) -> list[Sample]:
    """Films of 1, 2, 3 and 10 frames, each behind a picture."""
    samples = []
    for number, count in enumerate((1, 2, 3, 10)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for place in range(count):
            picture(100 * number + place).save(folder / f"{place}.png")
        parts = (Image(picture(number)), Video(folder, role="user"), Text(f"film {number}", target=True))
        samples.append(Sample(Sentence(parts), f"{number}", (f"film {number}",)))
    return samples


def shown(samples: Sequence[Sample], kind: type[Part]) -> list[Part]:
    return [part for sample in samples for part in sample.sentence.prompt() if isinstance(part, kind)]


def test_blind_films_are_as_many_black_frames_as_are_looked_at(films: list[Sample]) -> None:
    changed = shown(blind(films, 0), Video)
    sources = [part.source for part in changed if isinstance(part, Video)]
    assert [len(load_frames(source)) for source in sources] == [1, 2, 3, 8]
    assert all(frame.getextrema() == ((0, 0),) * 3 for source in sources for frame in load_frames(source))
    assert all(part.role == "user" for part in changed)
    again = [part.source for part in shown(blind(films, 0), Video) if isinstance(part, Video)]
    assert all(one is other for one, other in zip(sources, again, strict=True))  # equal prompts are asked once


def test_pixels_and_pictures_count_their_frames_and_a_file_is_not_read(tmp_path: Path) -> None:
    pixels = np.full((5, 4, 4, 3), 9, dtype=np.uint8)
    sources = (pixels, picture(0), tmp_path / "no such film.mp4", b"no film")
    samples = [Sample(Sentence.of(Video(source)), f"{number}") for number, source in enumerate(sources)]
    found = [part.source for part in shown(blind(samples, 0), Video) if isinstance(part, Video)]
    assert [np.shape(source) for source in found] == [(count, 224, 224, 3) for count in (5, 1, 8, 8)]


def test_shuffled_films_are_those_of_other_samples_and_pictures_stay_pictures(films: list[Sample]) -> None:
    changed = shuffled(films, 3)
    for kind in (Image, Video):
        before = [part.source for part in shown(films, kind) if isinstance(part, Image | Video)]
        after = [part.source for part in shown(changed, kind) if isinstance(part, Image | Video)]
        assert not any(one is other for one, other in zip(before, after, strict=True))
        assert {id(source) for source in before} == {id(source) for source in after}
    assert [sample.sentence.targets() for sample in changed] == [sample.sentence.targets() for sample in films]


def test_a_single_film_cannot_be_shuffled(films: list[Sample]) -> None:
    one = Sample(Sentence(films[0].sentence.parts[1:]), "one")
    with pytest.raises(DataError, match="expected 2 different films or more, found 1"):
        shuffled([one, one], 0)


def test_without_its_film_a_sentence_is_asked_in_words(films: list[Sample]) -> None:
    for sample in text_only(films, 0):
        assert sample.sentence.prompt() == Sentence.of(LEAD_IN)
    assert shows_pictures([Sample(Sentence.of(Video("a")), "a")])
    assert not shows_pictures([Sample(Sentence.of("a"), "a")])


class SeesFilms:
    """Names the film by its folder."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        """ "film 3" for the folder 3, "a film" for what has no name."""
        answers = []
        for sentence in sentences:
            sources = [part.source for part in sentence if isinstance(part, Video)]
            known = sources and isinstance(sources[0], Path)
            answers.append(Sentence.of(f"film {sources[0].name}" if known else "a film"))  # type: ignore[union-attr]
        return answers


def test_the_controls_of_films_are_in_the_report(films: list[Sample]) -> None:
    only = [Sample(Sentence(sample.sentence.parts[1:]), sample.key, sample.references) for sample in films]
    report = evaluate(SeesFilms(), "exact", only, Options())
    assert report.metrics["accuracy"] == 100
    assert {name: values["accuracy"] for name, values in report.controls.items()} == {
        "blind": 0,
        "shuffled": 0,
        "text-only": 0,
    }


def test_a_system_answers_the_controls_of_films(films: list[Sample]) -> None:
    report = evaluate(toy("flamingo"), "exact", films, Options())
    assert set(report.controls) == {"blind", "shuffled", "text-only"}
