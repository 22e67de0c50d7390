"""The evaluation: controls by the same code, answers in order, reports that say where they came from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL.Image import Image as PILImage

from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError, GraftError, ShapeError, UsageError
from graftlm.evaluate.controls import LEAD_IN, shuffled, text_only
from graftlm.evaluate.metrics import java
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options, find_task, task_names
from graftlm.lm.decode import Decoding
from tests.pictures import picture


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Java takes seconds; METEOR is tested against the original in tests/parity."""
    monkeypatch.setattr(java, "missing", lambda: "is switched off")


CAPTIONS = ["a red dog runs", "two cats sleep on a bed", "a <man> rides a big horse", "blue cars in the street"]


class Knowing:
    """Knows each picture's caption by the object, says "a thing" of any other."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.words = {id(sample.sentence.media()[0].source): sample.references[0] for sample in samples}  # type: ignore[union-attr]
        self.asked: list[list[Sentence]] = []
        self.decoding = Decoding()

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        self.asked.append(list(sentences))
        self.decoding = decoding
        answers = []
        for sentence in sentences:
            (image,) = sentence.media() or (Image(""),)
            assert isinstance(image, Image)
            answers.append(Sentence.of(Text(f" {self.words.get(id(image.source), 'a thing')} ", role="assistant")))
        return answers


def captioned(count: int = 4, words: str = "") -> list[Sample]:
    parts = [Text(words)] if words else []
    return [
        Sample(
            Sentence.of(Image(picture(seed)), *parts, Text(CAPTIONS[seed % 4], target=True)),
            key=f"{seed}.jpg",
            references=(CAPTIONS[seed % 4], "something else"),
        )
        for seed in range(count)
    ]


def test_a_knowing_responder_scores_100_and_its_controls_do_not() -> None:
    samples = captioned()
    report = evaluate(Knowing(samples), "captioning", samples, Options(graft="g", seed=3))
    assert (report.task, report.graft, report.n, report.seed) == ("captioning", "g", 4, 3)
    assert report.metrics["BLEU-4"] == pytest.approx(100)
    assert report.metrics["distinct"] == 4
    assert set(report.controls) == {"blind", "shuffled", "text-only"}
    assert all(values["CIDEr"] < 0.2 * report.metrics["CIDEr"] for values in report.controls.values())
    assert report.controls["blind"]["distinct"] == 1


def test_answers_come_back_in_the_order_asked_whatever_the_batches() -> None:
    samples = [
        Sample(Sentence.of(Image(picture(seed)), Text("x" * (7 * seed % 5))), f"{seed}", (f"caption {seed}",))
        for seed in range(11)
    ]
    for size in (1, 3, 16):
        knowing = Knowing(samples)
        report = evaluate(knowing, "exact", samples, Options(batch_size=size, controls=()))
        assert [row.prediction for row in report.rows] == [f"caption {seed}" for seed in range(11)]
        assert report.metrics["accuracy"] == 100
        assert max(len(batch) for batch in knowing.asked) <= size


def test_equal_prompts_are_asked_once_unless_answers_are_sampled() -> None:
    source = picture(0)
    samples = [Sample(Sentence.of(Image(source)), str(key), ("a",)) for key in range(5)]
    knowing = Knowing(samples)
    evaluate(knowing, "exact", samples, Options(controls=()))
    assert sum(map(len, knowing.asked)) == 1
    knowing = Knowing(samples)
    evaluate(knowing, "exact", samples, Options(controls=(), decoding=Decoding(temperature=1.0)))
    assert sum(map(len, knowing.asked)) == 5


def test_targets_are_not_shown_to_the_responder() -> None:
    samples = captioned(2)
    knowing = Knowing(samples)
    evaluate(knowing, "captioning", samples)
    assert not any(part.target for batch in knowing.asked for sentence in batch for part in sentence)


def test_blind_shows_black_and_text_only_shows_nothing() -> None:
    samples = captioned(3, words="It shows")
    knowing = Knowing(samples)
    evaluate(knowing, "captioning", samples, Options(controls=("blind", "text-only")))
    *_, blind, text = [sentence for batch in knowing.asked for sentence in batch]
    (image,) = blind.media()
    assert isinstance(image, Image)
    assert isinstance(image.source, PILImage)
    assert image.source.getextrema() == ((0, 0),) * 3
    assert text == Sentence.of("It shows")


def test_shuffled_moves_every_picture_and_repeats_with_its_seed() -> None:
    samples = captioned(9)

    def order(seed: int) -> list[int]:
        return [id(sample.sentence.media()[0].source) for sample in shuffled(samples, seed)]  # type: ignore[union-attr]

    own = [id(sample.sentence.media()[0].source) for sample in samples]  # type: ignore[union-attr]
    assert sorted(order(0)) == sorted(own)
    for seed in range(20):
        assert not any(here == there for here, there in zip(own, order(seed), strict=True))
    assert order(1) == order(1)
    assert order(1) != order(2)


def test_shuffled_never_gives_a_photo_with_two_questions_back_to_itself() -> None:
    sources = [picture(0), picture(1)]
    samples = [Sample(Sentence.of(Image(sources[n % 2]), Text("?")), str(n), ("a",)) for n in range(6)]
    for before, after in zip(samples, shuffled(samples, 5), strict=True):
        assert before.sentence.media() != after.sentence.media()
    with pytest.raises(DataError, match="2 different pictures"):
        shuffled(samples[:1], 0)


def test_a_sentence_of_only_a_picture_is_asked_with_a_lead_in() -> None:
    (sample,) = text_only(captioned(1), 0)
    assert sample.sentence.prompt() == Sentence.of(LEAD_IN)
    assert sample.sentence.targets() == Sentence.of(Text(CAPTIONS[0], target=True))


class Blindfolded:
    """Cannot answer without a picture, and says so."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        if not all(sentence.media() for sentence in sentences):
            raise GraftError("expected a picture in each sentence, found none")
        return [Sentence.of("a thing") for _ in sentences]


def test_a_control_that_cannot_be_answered_is_left_out_with_the_reason() -> None:
    report = evaluate(Blindfolded(), "captioning", captioned())
    assert set(report.controls) == {"blind", "shuffled"}
    assert any("text-only control left out: expected a picture" in note for note in report.notes)


class Forgetful:
    """Gives one answer too few."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        return [Sentence.of("a thing")] * (len(sentences) - 1)


def test_a_responder_that_loses_an_answer_is_caught() -> None:
    with pytest.raises(ShapeError, match="found 3"):
        evaluate(Forgetful(), "captioning", captioned())


def test_wrong_requests_are_one_sentence() -> None:
    samples = captioned()
    knowing = Knowing(samples)
    with pytest.raises(UsageError, match="unknown task 'captionning'; did you mean 'captioning'"):
        evaluate(knowing, "captionning", samples)
    with pytest.raises(UsageError, match="unknown control 'deaf'"):
        evaluate(knowing, "captioning", samples, Options(controls=("deaf",)))
    with pytest.raises(DataError, match="at least one sample"):
        evaluate(knowing, "captioning", [])
    with pytest.raises(UsageError, match="at least 1 sample"):
        evaluate(knowing, "captioning", samples, Options(limit=0))
    with pytest.raises(DataError, match=r"reference caption for '0\.jpg'"):
        evaluate(knowing, "captioning", [Sample(samples[0].sentence, "0.jpg", (" ",))])


def test_every_task_file_is_a_task_of_its_name() -> None:
    assert {"captioning", "exact"} <= set(task_names())
    for name in task_names():
        task = find_task(name)
        assert task.name == name
        assert task.headline
        assert task.decoding(3).num_beams == (1 if name == "requests" else 3)  # beams would decide for it


def test_limit_takes_the_first_and_beam_reaches_the_search() -> None:
    samples = captioned(4)
    knowing = Knowing(samples)
    report = evaluate(knowing, "captioning", samples, Options(limit=3, beam=5, controls=()))
    assert [row.key for row in report.rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert knowing.decoding.num_beams == 5


def test_exact_match_ignores_case_and_spacing_alone() -> None:
    samples = [Sample(Sentence.of(Image(picture(0))), "0", ("A  Thing",)), Sample(Sentence(), "1", ("a thing.",))]
    report = evaluate(Monotone(), "exact", samples, Options(controls=()))
    assert [row.scores["accuracy"] for row in report.rows] == [100, 0]
    assert report.metrics["accuracy"] == 50


class Monotone:
    """Says "a thing" of everything."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        return [Sentence.of("a thing") for _ in sentences]


def test_progress_is_told_for_each_pass_up_to_its_end() -> None:
    told: list[tuple[str, int, int]] = []
    samples = captioned(4)
    evaluate(Knowing(samples), "captioning", samples, Options(batch_size=2), progress=lambda *row: told.append(row))
    assert [(stage, done) for stage, done, total in told if done == total] == [
        (stage, 4) for stage in ("answers", "blind", "shuffled", "text-only")
    ]


def test_the_config_hash_tells_searches_and_samples_apart() -> None:
    samples = captioned(4)

    def config_hash(options: Options, count: int = 4) -> str:
        return evaluate(Knowing(samples), "exact", samples[:count], options).config_hash

    base = config_hash(Options(controls=()))
    assert base == config_hash(Options(controls=(), batch_size=2))
    assert len({base, config_hash(Options(controls=(), beam=2)), config_hash(Options(controls=()), 3)}) == 3


def test_the_report_is_saved_as_json_with_rows_and_as_a_page_that_loads_nothing(tmp_path: Path) -> None:
    samples = captioned(4)
    report = evaluate(Knowing(samples), "captioning", samples, Options(graft="a<b>"))
    steps = [{"event": event, "step": step, "loss": 3 - step / 10} for event in ("train", "val") for step in range(9)]
    page = report.save(tmp_path / "reports" / "captioning.json", samples, training=steps)
    content = json.loads((tmp_path / "reports" / "captioning.json").read_text("utf-8"))
    assert {"task", "graft", "n", "seed", "seconds", "metrics", "intervals", "controls"} <= set(content)
    assert {"config_hash", "versions", "rows"} <= set(content)
    assert [row["key"] for row in content["rows"]] == [sample.key for sample in samples]
    assert content["rows"][0]["scores"]["BLEU-1"] == 100
    html = page.read_text("utf-8")
    assert html.count("src='data:image/jpeg;base64,") == 4
    assert "a&lt;b&gt;" in html
    assert "a &lt;man&gt; rides" in html
    assert "<polyline" in html
    assert not re.search(r"(src|href)=['\"]?(http|//)", html)
    assert sorted(path.name for path in page.parent.iterdir()) == ["captioning.html", "captioning.json"]


def test_the_page_says_when_a_photo_cannot_be_shown(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    samples = [Sample(Sentence.of(Image(str(broken))), "broken.jpg", ("a thing",))]
    report = evaluate(Monotone(), "captioning", samples, Options(controls=()))
    assert "is not a picture" in report.save(tmp_path / "r.json", samples).read_text("utf-8")


def test_an_unknown_control_is_refused_before_anything_is_asked() -> None:
    asked: list[str] = []
    samples = captioned()
    with pytest.raises(UsageError, match="unknown control 'deaf'"):
        evaluate(
            Knowing(samples),
            "captioning",
            samples,
            Options(controls=("deaf",)),
            progress=lambda stage, done, total: asked.append(stage),
        )
    assert not asked
