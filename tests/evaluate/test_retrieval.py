"""Retrieval: recalls that a loop confirms, controls that find nothing, and systems side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from graftlm.data.media import content_hash
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.errors import DataError, ShapeError, UsageError
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.lm.decode import Decoding
from tests.pictures import picture

WIDTH = 24


def vector(name: str) -> Tensor:
    """A unit vector that a name alone decides."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


class Finder:
    """Maps a picture to a vector of its content, and a caption to that of its photo with `noise` of its own."""

    shared_dim = WIDTH

    def __init__(self, samples: Sequence[Sample], noise: float = 0.0) -> None:
        self.noise = noise
        self.photo = {
            text: content_hash(sample.sentence.media()[0]) for sample in samples for text in sample.references
        }
        self.asked: list[Sentence] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        raise AssertionError("nothing is to be written")

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        return torch.stack([vector(content_hash(part)) for part in media])

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        self.asked += sentences
        rows = []
        for sentence in sentences:
            texts = [part.content.strip() for part in sentence if isinstance(part, Text)]
            rows.append(sum(vector(self.photo[text]) + self.noise * vector(text) for text in texts))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)  # type: ignore[arg-type]

    def retrieval_fingerprint(self) -> str:
        return "00"


def photos(count: int = 12, captions: int = 5) -> list[Sample]:
    return [
        Sample(
            Sentence.of(Image(picture(seed)), Text(f"caption 0 of {seed}", target=True)),
            key=f"{seed}.jpg",
            references=tuple(f"caption {number} of {seed}" for number in range(captions)),
        )
        for seed in range(count)
    ]


def test_who_knows_finds_everything_and_the_controls_find_nothing() -> None:
    samples = photos(20)
    report = evaluate(Finder(samples), "retrieval", samples, Options(graft="finder"))
    names = [f"{way} R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    names += [f"t2i R@{k} (5 captions)" for k in (1, 5, 10)]
    assert all(report.metrics[name] == 100 for name in names)
    assert report.metrics["t2i median rank"] == 1
    assert set(report.controls) == {"blind", "shuffled"}
    assert report.controls["blind"]["t2i R@10"] == 0
    assert report.controls["blind"]["i2t R@10"] <= 50  # all pictures alike: ten captions for twenty photos
    assert report.controls["shuffled"]["t2i R@1"] < 20
    assert set(report.intervals) == set(names)


def test_the_page_shows_what_was_found_and_says_how_ranks_are_read(tmp_path: Path) -> None:
    samples = photos(4)
    report = evaluate(Finder(samples), "retrieval", samples, Options(controls=()))
    text = report.save(tmp_path / "retrieval.json", samples).read_text("utf-8")
    assert text.count("1 is best") == 3  # t2i, i2t, and t2i by five captions
    assert "the right one framed" in text
    assert text.count("<li class=right>") == text.count("<article") > 0


def by_hand(finder: Finder, samples: Sequence[Sample]) -> dict[str, float]:
    """The same numbers in plain loops, one dot product at a time."""
    pictures = [finder.embed_media([sample.sentence.media()[0]])[0] for sample in samples]
    texts = [(n, finder.embed_queries([Sentence.of(t)])[0]) for n, s in enumerate(samples) for t in s.references]
    t2i = []
    for owner, text in texts:
        own = float(text @ pictures[owner])
        t2i.append(1 + sum(float(text @ other) >= own for n, other in enumerate(pictures) if n != owner))
    i2t = []
    for owner, image in enumerate(pictures):
        own = max(float(image @ text) for n, text in texts if n == owner)
        i2t.append(1 + sum(float(image @ text) >= own for n, text in texts if n != owner))
    found = {f"t2i R@{k}": 100 * sum(rank <= k for rank in t2i) / len(t2i) for k in (1, 5, 10)}
    return found | {f"i2t R@{k}": 100 * sum(rank <= k for rank in i2t) / len(i2t) for k in (1, 5, 10)}


def test_the_numbers_are_those_of_a_loop() -> None:
    samples = [*photos(25, captions=5), *photos(31, captions=2)[25:]]
    finder = Finder(samples, noise=2.0)
    report = evaluate(finder, "retrieval", samples, Options(controls=()))
    expected = by_hand(finder, samples)
    assert 0 < expected["t2i R@1"] < 100
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    other = evaluate(Finder(samples, noise=2.5), "retrieval", samples, Options(controls=()))
    assert {name: other.metrics[name] for name in expected} != pytest.approx(expected, abs=1e-5)


def test_the_mean_is_over_captions_and_intervals_are_over_photos() -> None:
    samples = [*photos(1, captions=9), *photos(2, captions=1)[1:]]
    finder = Finder(samples)
    finder.photo |= dict.fromkeys(samples[0].references, "a wrong photo")
    report = evaluate(finder, "retrieval", samples, Options(controls=()))
    assert report.metrics["t2i R@1"] in (10, 100)  # nine captions of one photo, one of the other
    low, high = report.intervals["t2i R@1"]
    assert (low, high) == (0, 100) or low == high == 100


def test_all_captions_of_a_photo_make_one_query_of_several_parts() -> None:
    samples = photos(3, captions=3)
    finder = Finder(samples)
    report = evaluate(finder, "retrieval", samples, Options(controls=()))
    assert finder.asked[0] == Sentence.of("caption 0 of 0")
    assert finder.asked[-1] == Sentence.of("caption 0 of 2", " caption 1 of 2", " caption 2 of 2")
    assert "t2i R@1 (3 captions)" in report.metrics
    single = evaluate(finder, "retrieval", photos(3, captions=1), Options(controls=()))
    assert not any("captions)" in name for name in single.metrics)


def test_tokenised_captions_are_asked_as_people_write_them() -> None:
    samples = [Sample(Sentence.of(Image(picture(0))), "0", ("a dog , running .",))]
    finder = Finder(samples)
    finder.photo["a dog, running."] = "x"
    evaluate(finder, "retrieval", samples, Options(controls=()))
    assert finder.asked == [Sentence.of("a dog, running.")]


def test_another_system_stands_beside_in_the_same_report() -> None:
    samples = photos()
    report = evaluate(
        Finder(samples), "retrieval", samples, Options(controls=()), beside={"noisy": Finder(samples, noise=9.0)}
    )
    assert set(report.baselines) == {"noisy"}
    assert set(report.baselines["noisy"]) == set(report.metrics)
    assert report.baselines["noisy"]["t2i R@1"] < report.metrics["t2i R@1"]
    assert report.summary()["baselines"]["noisy"]["t2i R@10"] <= 100


def test_rows_tell_the_query_its_rank_and_the_first_five_pictures(tmp_path: Path) -> None:
    samples = photos()
    finder = Finder(samples)
    finder.photo["caption 1 of 0"] = finder.photo["caption 0 of 3"]
    report = evaluate(finder, "retrieval", samples, Options(controls=()))
    wrong = next(row for row in report.rows if row.prompt == "caption 1 of 0")
    assert (wrong.key, wrong.prediction, wrong.references) == ("0.jpg#1", "3.jpg", ("0.jpg",))
    assert len(set(wrong.found)) == 5
    assert wrong.scores["rank"] > 1
    page = report.save(tmp_path / "report.json", samples)
    text = page.read_text("utf-8")
    assert f"rank {wrong.scores['rank']:.0f}" in text
    assert text.count("<li class=right>") >= 12
    rows = json.loads((tmp_path / "report.json").read_text("utf-8"))["rows"]
    assert rows[1]["found"][0] == "3.jpg"


class Talker:
    """Answers, and finds nothing."""

    name = "talker"

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        return [Sentence.of("a thing") for _ in sentences]


class Forgetful(Finder):
    """Gives one vector too few."""

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        return super().embed_media(media)[1:]


def test_what_cannot_be_evaluated_is_refused_in_one_sentence() -> None:
    samples = photos(3)
    with pytest.raises(UsageError, match=r"finds pictures .* found 'talker', which only answers; choose"):
        evaluate(Talker(), "retrieval", samples)
    with pytest.raises(DataError, match="caption for 'x', found none"):
        evaluate(Finder(samples), "retrieval", [Sample(Sentence.of(Image(picture(0))), "x")])
    with pytest.raises(DataError, match="one picture in 'y', found 0"):
        evaluate(Finder(samples), "retrieval", [Sample(Sentence.of("words"), "y", ("words",))])
    with pytest.raises(ShapeError, match="expected 3 vectors, one per item, found 2"):
        evaluate(Forgetful(samples), "retrieval", samples)


def test_equal_photos_tie_and_ties_count_against() -> None:
    samples = [*photos(2), Sample(photos(1)[0].sentence, "again", ("caption 0 of 0",))]
    report = evaluate(Finder(samples), "retrieval", samples, Options(controls=()))
    ranks = {row.key: row.scores["rank"] for row in report.rows}
    assert (ranks["0.jpg#0"], ranks["again#0"], ranks["1.jpg#0"]) == (2, 2, 1)
    assert np.isfinite(list(report.metrics.values())).all()
