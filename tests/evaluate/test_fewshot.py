"""Few-shot: the exact words of every prompt, which examples stand in it and in what order, and what is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.errors import DataError, ShapeError, UsageError
from graftlm.evaluate.answers import shared_start
from graftlm.evaluate.controls import black_image
from graftlm.evaluate.metrics.bootstrap import crossed_interval, mean_interval
from graftlm.evaluate.prompts import orders
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.shots import shown
from graftlm.evaluate.support import Support
from graftlm.evaluate.task import Options, find_task
from graftlm.lm.decode import Decoding
from tests.pictures import picture

PICTURES = [picture(seed) for seed in range(40)]
NUMBER = {id(source): number for number, source in enumerate(PICTURES)}
BLACK = black_image()


def captioned(numbers: Sequence[int]) -> list[Sample]:
    """Photo number 7 is captioned "photo 7 ." as tokenised captions are."""
    return [
        Sample(
            Sentence.of(Image(PICTURES[n]), Text(f"photo {n} .", target=True)), f"{n}.jpg", (f"photo {n} .", "a thing")
        )
        for n in numbers
    ]


def questions(numbers: Sequence[int]) -> list[Sample]:
    """Of photo number 7 it is asked "which 7?", and the answer is "number 7"."""
    return [
        Sample(
            Sentence.of(Image(PICTURES[n]), Text(f"Question: which {n}? Answer:"), Text(f" number {n}", target=True)),
            f"q{n}",
            (f"number {n}",),
            {"question": f"which {n}?", "choices": (f"number {n}", f"number {n + 1}"), "answer_index": 0},
        )
        for n in numbers
    ]


def written(sentence: Sentence) -> str:
    """A sentence as one string: <7> is photo number 7, <black> a black one."""
    words = []
    for part in sentence:
        if isinstance(part, Text):
            words.append(part.content)
        else:
            source = part.source  # type: ignore[union-attr]
            words.append(f"<{NUMBER.get(id(source), 'black')}>")
    return "".join(words)


class Recording:
    """Remembers what it was asked, and says `answer`, in which {} is the number of the last photo."""

    def __init__(self, answer: str = "photo {}.") -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.sentences: list[Sentence] = []
        self.decoding = Decoding()

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        self.decoding = decoding
        self.sentences += sentences
        self.asked += [written(sentence) for sentence in sentences]
        found = []
        for sentence in sentences:
            sources = [part.source for part in sentence.media()]  # type: ignore[union-attr]
            number = NUMBER.get(id(sources[-1]), "black") if sources else "none"
            found.append(Sentence.of(f" {self.answer.format(number)}"))
        return found

    def log_likelihoods(
        self, prompt: Sentence, candidates: Sequence[str], *, released: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The longer the number of the first photo, the better the second candidate."""
        self.asked.append(written(prompt.prompt()))
        first = NUMBER.get(id(prompt.media()[0].source), 0) if prompt.media() else 0  # type: ignore[union-attr]
        return torch.tensor([-10.0, -10.0 - 0.1 * (20 - first)]), torch.tensor([2, 2])


def prompts(samples: Sequence[Sample], support: Sequence[Sample], **settings: str) -> list[str]:
    options = Options(support=support, settings=settings)
    prepared = find_task("fewshot").prepare(samples, options)
    return [written(sample.sentence.prompt()) for sample in prepared]


def test_captions_are_asked_for_in_the_words_of_the_paper() -> None:
    (found,) = prompts(captioned([1]), captioned([5]), shots="1", select="fixed")
    assert found == "<5>Output: photo 5.\n<1>Output:"


def test_captions_are_asked_for_in_the_words_of_open_flamingo() -> None:
    (found,) = prompts(captioned([1]), captioned([5]), shots="1", select="fixed", style="open_flamingo")
    assert found == "<5>Output:photo 5.\n<1>Output:"


def test_captions_are_asked_for_in_the_words_of_the_data() -> None:
    (found,) = prompts(captioned([1]), captioned([5]), shots="1", select="fixed", style="data")
    assert found == "<5>photo 5.\n<1>"


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("paper", "<5>Question: which 5? Answer: number 5\n<1>Question: which 1? Answer:"),
        ("open_flamingo", "<5>Question:which 5? Short answer:number 5\n<1>Question:which 1? Short answer:"),
        ("data", "<5>Question: which 5? Answer: number 5\n<1>Question: which 1? Answer:"),
    ],
)
def test_questions_are_asked_in_the_words_of_each_style(style: str, expected: str) -> None:
    assert prompts(questions([1]), questions([5]), shots="1", select="fixed", style=style) == [expected]


def test_task_induction_stands_before_everything() -> None:
    settings = {"shots": "1", "select": "fixed", "induction": "Please answer the question."}
    (found,) = prompts(questions([1]), questions([5]), **settings)
    assert found.startswith("Please answer the question.\n<5>Question: which 5?")


def test_no_shots_are_two_examples_in_words_alone_and_the_same_for_every_question() -> None:
    found = prompts(captioned([1, 2]), captioned([5, 6]), shots="0", select="rices")
    assert found[0] in (
        "Output: photo 5.\nOutput: photo 6.\n<1>Output:",
        "Output: photo 6.\nOutput: photo 5.\n<1>Output:",
    )
    assert found[1] == found[0].replace("<1>", "<2>")
    assert prompts(captioned([1, 2]), (), shots="0", zero="none") == ["<1>Output:", "<2>Output:"]


def test_the_support_split_is_asked_for_only_where_examples_are_shown() -> None:
    task = find_task("fewshot")
    assert task.support_split({"shots": "0,4", "support": "val"}) == "val"
    assert task.support_split({"shots": "0"}) == "train"
    assert task.support_split({"shots": "0", "zero": "none"}) is None
    assert task.support_split({"shots": "0", "answer": "rank"}) is None


def test_fixed_examples_are_the_same_for_all_and_start_every_prompt() -> None:
    options = Options(support=captioned(range(10, 30)), settings={"shots": "1,4", "select": "fixed"})
    prepared = find_task("fewshot").prepare(captioned([1, 2, 3]), options)
    for shots in (1, 4):
        sentences = [sample.sentence for sample in prepared if shown(sample).shots == shots]
        assert len({shown(sample).examples for sample in prepared if shown(sample).shots == shots}) == 1
        assert shared_start(sentences) == 3 * shots
    first, *_, last = (shown(sample).examples for sample in prepared)
    assert last[:1] == first


def test_random_examples_differ_by_question_and_repeat_with_the_seed() -> None:
    support = captioned(range(10, 40))
    found = prompts(captioned([1, 2]), support, shots="4", select="random")
    assert found == prompts(captioned([1, 2]), support, shots="4", select="random")
    assert found[0].partition("<1>")[0] != found[1].partition("<2>")[0]
    both = prompts(captioned([1]), support, shots="2,4", select="random")
    assert both[1].startswith(both[0].removesuffix("<1>Output:"))
    assert both[1] == found[0]
    other = Options(seed=1, support=support, settings={"shots": "4"})
    assert written(find_task("fewshot").prepare(captioned([1]), other)[0].sentence.prompt()) != found[0]


VECTORS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * np.arange(1, 41)[:, None]


def pooled(media: Sequence[MediaPart]) -> Tensor:
    """A vector for each photo, of different lengths."""
    return torch.from_numpy(np.stack([VECTORS[NUMBER[id(part.source)]] for part in media]))  # type: ignore[union-attr]


def test_rices_takes_the_nearest_by_cosine_and_puts_the_nearest_last() -> None:
    queries, support = captioned(range(6)), captioned(range(6, 40))
    options = Options(support=support, pooled=pooled, settings={"shots": "1,3,16", "select": "rices"})
    prepared = find_task("fewshot").prepare(queries, options)
    assert len(prepared) == 18
    for sample in prepared:
        query = VECTORS[int(sample.key.removesuffix(".jpg"))]
        cosine = {}
        for number in range(6, 40):
            other = VECTORS[number]
            cosine[number] = sum(query * other) / (math.sqrt(sum(query**2)) * math.sqrt(sum(other**2)))
        nearest = sorted(cosine, key=lambda number: cosine[number])[-shown(sample).shots :]
        assert shown(sample).examples == tuple(f"{number}.jpg" for number in nearest)
        examples = "".join(f"<{number}>Output: photo {number}.\n" for number in nearest)
        assert written(sample.sentence.prompt()) == f"{examples}<{query_number(sample)}>Output:"


def query_number(sample: Sample) -> str:
    return sample.key.removesuffix(".jpg")


@pytest.mark.parametrize("select", ["fixed", "random", "rices"])
def test_the_questions_own_photo_is_never_shown_whatever_its_name(select: str) -> None:
    """The support set is the evaluated split itself, and holds a copy of every photo under another name."""
    samples = captioned(range(5))
    copies = [
        Sample(Sentence.of(Image(PICTURES[n].copy()), Text(f"copy {n}", target=True)), f"copy{n}.jpg") for n in range(5)
    ]
    seen = {id(copy.sentence.media()[0].source): n for n, copy in enumerate(copies)}  # type: ignore[union-attr]

    def alike(media: Sequence[MediaPart]) -> Tensor:
        numbers = [NUMBER.get(id(part.source), seen.get(id(part.source))) for part in media]  # type: ignore[union-attr]
        return torch.from_numpy(np.stack([VECTORS[number] for number in numbers]))

    options = Options(support=[*samples, *copies], pooled=alike, settings={"shots": "4", "select": select})
    for sample in find_task("fewshot").prepare(samples, options):
        photos = {name.removeprefix("copy") for name in shown(sample).examples}
        assert photos == {f"{n}.jpg" for n in range(5)} - {sample.key}  # each of the others once
    more = Options(support=[*samples, *copies], pooled=alike, settings={"shots": "5", "select": select})
    with pytest.raises(DataError, match=r"expected 5 worked examples with different photos for '0\.jpg', found 4"):
        find_task("fewshot").prepare(samples, more)


def test_rices_without_an_encoder_is_refused() -> None:
    with pytest.raises(UsageError, match="rices: expected an encoder"):
        prompts(captioned([1]), captioned([2, 3]), shots="1", select="rices")


def test_a_pool_is_drawn_once_a_seed_and_samples_without_an_answer_are_left_out() -> None:
    samples = captioned(range(30))
    small = Support(samples, size=5, seed=3)
    assert len(small.samples) == 5
    assert [one.key for one in small.samples] == [one.key for one in Support(samples, size=5, seed=3).samples]
    assert [one.key for one in small.samples] != [one.key for one in Support(samples, size=5, seed=4).samples]
    unanswered = Sample(Sentence.of(Image(PICTURES[0])), "0.jpg")
    assert len(Support([unanswered, *samples[1:3]]).samples) == 2
    with pytest.raises(DataError, match="found none; name another with --support"):
        Support([unanswered])


def test_captions_are_scored_at_every_number_of_shots_with_their_controls() -> None:
    samples = captioned(range(6))
    options = Options(support=captioned(range(10, 20)), settings={"shots": "0,2"}, graft="g")
    report = evaluate(Recording("photo {}."), "fewshot", samples, options)
    assert (report.n, report.headline, len(report.rows)) == (6, "CIDEr", 12)
    assert report.metrics["ROUGE-L@0"] == report.metrics["ROUGE-L@2"] == pytest.approx(100)
    assert report.metrics["distinct@2"] == 6
    assert set(report.controls) == {"blind", "shuffled", "text-only"}
    for values in report.controls.values():
        assert set(values) == set(report.metrics)
        assert values["CIDEr@2"] < 0.5 * report.metrics["CIDEr@2"]
    low, high = report.intervals["CIDEr@2"]
    assert low <= report.metrics["CIDEr@2"] <= high
    assert [row.key for row in report.rows][5:7] == ["5.jpg@0", "0.jpg@2"]
    assert report.rows[-1].prompt.count("Output:") == 3
    assert report.rows[-1].sample == "5.jpg"


def test_controls_keep_the_words_of_the_examples_and_change_every_picture() -> None:
    samples, support = captioned(range(4)), captioned(range(10, 14))
    asked = {}
    for control in ((), ("blind",), ("shuffled",), ("text-only",)):
        recording = Recording()
        options = Options(support=support, settings={"shots": "2"}, controls=control)
        evaluate(recording, "fewshot", samples, options)
        asked[control] = recording.sentences[4:] if control else recording.sentences
    words = {sentence.text() for sentence in asked[()]}
    assert len(words) > 1
    for control in (("blind",), ("shuffled",), ("text-only",)):
        assert {sentence.text() for sentence in asked[control]} == words  # equal prompts are asked once
    assert {source.getextrema() for source in sources(asked[("blind",)])} == {((0, 0),) * 3}
    assert not sources(asked[("text-only",)])
    pairs = list(zip(sources(asked[()]), sources(asked[("shuffled",)]), strict=True))
    assert len(pairs) == 12
    assert not any(one is other for one, other in pairs)


def sources(sentences: Sequence[Sentence]) -> list[PILImage]:
    return [part.source for sentence in sentences for part in sentence.media()]  # type: ignore[union-attr, misc]


def test_scores_are_means_over_the_seeds_which_are_told() -> None:
    samples = captioned(range(5))
    options = Options(
        seed=7, support=captioned(range(10, 20)), settings={"shots": "1", "seeds": "3"}, controls=(), resamples=50
    )
    recording = Recording()
    report = evaluate(recording, "fewshot", samples, options)
    assert len(recording.asked) == len(set(recording.asked)) > 5
    assert len(report.rows) == 15
    assert {row.key for row in report.rows} == {f"{n}.jpg@1/{trial}" for n in range(5) for trial in range(3)}
    assert any(note.startswith("CIDEr@1 with seeds 7 to 9: ") for note in report.notes)
    single = evaluate(
        Recording(), "fewshot", samples, Options(seed=7, support=options.support, settings={"shots": "1"})
    )
    assert report.metrics["CIDEr@1"] == pytest.approx(single.metrics["CIDEr@1"])  # it does not read the examples


class Copying(Recording):
    """Says what the last worked example says."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        answers = []
        for sentence in sentences:
            line = sentence.text().split("\n")[-2]
            answers.append(Sentence.of(f'{line.partition(":")[2]} "Output: photo 99'))
        return answers


def test_what_is_copied_from_the_nearest_example_shows_in_the_controls_too() -> None:
    """All photos are captioned by their tens, and near photos are of one ten."""
    tens = [
        Sample(Sentence.of(Image(PICTURES[n]), Text(f"a scene of kind {n // 10} here", target=True)), f"{n}", refs)
        for n in range(40)
        for refs in [(f"a scene of kind {n // 10} here", f"kind {n // 10}")]
    ]

    def near(media: Sequence[MediaPart]) -> Tensor:
        return torch.eye(4)[[NUMBER[id(part.source)] // 10 for part in media]]  # type: ignore[union-attr]

    queries, support = [tens[n] for n in (0, 10, 20, 30)], [tens[n] for n in range(40) if n % 10]
    options = Options(support=support, pooled=near, settings={"shots": "2", "select": "rices"})
    report = evaluate(Copying(), "fewshot", queries, options)
    assert report.metrics["BLEU-4@2"] == pytest.approx(100)
    assert report.controls["blind"] == report.metrics
    assert any("controls keep the words" in note for note in report.notes)


def test_answers_are_scored_by_vqa_accuracy_and_cut_at_their_comma() -> None:
    samples = questions(range(4))
    recording = Recording("The Number {}, I think Question: why")
    options = Options(support=questions(range(10, 20)), settings={"shots": "0,1"}, beam=2)
    report = evaluate(recording, "fewshot", samples, options)
    assert report.headline == "accuracy"
    assert (report.metrics["accuracy@0"], report.metrics["accuracy@1"]) == (100, 100)
    assert report.rows[0].prediction == "The Number 0"
    assert report.controls["blind"]["accuracy@1"] == 0
    assert (recording.decoding.max_tokens, recording.decoding.num_beams, recording.decoding.stop) == (10, 2, ("\n",))


def test_choices_are_ranked_by_the_mean_over_permutations_of_the_examples() -> None:
    """The fake prefers the second choice by what stands first: 12 or 30. Only their mean tells."""
    samples, support = questions([1]), questions([12, 30])
    for permutations, expected in (("1", None), ("2", "number 2")):
        recording = Recording()
        settings = {"shots": "2", "answer": "rank", "select": "fixed", "permutations": permutations}
        report = evaluate(recording, "fewshot", samples, Options(support=support, settings=settings, controls=()))
        assert len(recording.asked) == int(permutations)
        if expected:
            assert {asked[:4] for asked in recording.asked} == {"<12>", "<30>"}
            assert report.rows[0].prediction == expected
            assert report.metrics["accuracy@2"] == 0
    assert len(report.rows) == 1


def test_ranking_without_shots_needs_no_examples() -> None:
    report = evaluate(Recording(), "fewshot", questions([1, 2]), Options(settings={"shots": "0", "answer": "rank"}))
    assert report.rows[0].prompt == "Question: which 1? Answer:"
    assert report.metrics["accuracy@0"] == 100
    assert report.controls["blind"]["accuracy@0"] == 100


def test_permutations_are_different_and_the_first_is_the_given_order() -> None:
    assert orders(0, 6, 0) == [()]
    assert sorted(orders(3, 24, 1)) == sorted(set(orders(3, 24, 1)))
    assert len(orders(3, 24, 1)) == 6
    assert len(orders(8, 6, 1)) == 6
    assert orders(8, 6, 1)[0] == tuple(range(8))
    assert orders(8, 6, 1) == orders(8, 6, 1) != orders(8, 6, 2)


class Narrow(Recording):
    """Has room for 30 characters."""

    def length(self, sentence: Sentence) -> tuple[int, int]:
        if len(sentence.text()) > 30:
            raise ShapeError("a prompt does not fit")
        return len(sentence.text()), 0


def test_a_prompt_without_room_is_told_before_any_answer() -> None:
    narrow = Narrow()
    options = Options(support=captioned(range(10, 20)), settings={"shots": "0,4", "zero": "none"})
    with pytest.raises(ShapeError, match="does not fit"):
        evaluate(narrow, "fewshot", captioned([1]), options)
    assert not narrow.asked


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shots": "0,x"}, "'shots': expected different whole numbers from 0 to 64, as 0,4,8, found '0,x'"),
        ({"shots": "4,4"}, "expected different whole numbers"),
        ({"shots": "65"}, "found '65'"),
        ({"select": "nearest"}, "expected random or fixed or rices, found 'nearest'"),
        ({"seeds": "0"}, "a whole number from 1 to 64, found '0'"),
        ({"shot": "1"}, "unknown setting 'shot'"),
        ({"style": "frozen"}, "expected paper or open_flamingo or data"),
    ],
)
def test_wrong_settings_say_what_is_expected(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluate(Recording(), "fewshot", captioned([1]), Options(settings=settings))
    assert words in str(error.value)


def test_samples_that_cannot_be_asked_are_named() -> None:
    support = captioned([5, 6])
    cases = [
        ([Sample(Sentence.of("words"), "a", ("x",))], {}, "expected a picture in 'a'"),
        ([Sample(Sentence.of(Image(PICTURES[1])), "b", (" ",))], {}, "expected at least one reference for 'b'"),
        (captioned([1]) + questions([2]), {}, "found both"),
        (captioned([1]), {"answer": "rank"}, "expected choices in '1.jpg'"),
    ]
    for samples, settings, words in cases:
        with pytest.raises(DataError, match=words):
            evaluate(Recording(), "fewshot", samples, Options(support=support, settings=settings))
    with pytest.raises(DataError, match="found none; name another with --support"):
        evaluate(Recording(), "fewshot", captioned([1]), Options())


def test_the_page_shows_a_curve_over_shots_with_the_controls_in_it(tmp_path: Path) -> None:
    samples = captioned(range(4))
    options = Options(support=captioned(range(10, 20)), settings={"shots": "0,1,4"})
    report = evaluate(Recording(), "fewshot", samples, options, beside={"other": Recording("a thing")})
    html = report.save(tmp_path / "fewshot.json", samples).read_text("utf-8")
    (drawing,) = [part for part in html.split("<svg")[1:] if "CIDEr over shots" in part]
    assert drawing.count("<polyline") == 5  # the score, three controls, the other system
    assert drawing.count("<circle") == 15
    for word in ("blind", "shuffled", "text-only", "other"):
        assert f">{word}</text>" in drawing
    one = evaluate(Recording(), "fewshot", samples, Options(support=options.support, settings={"shots": "1"}))
    assert "<svg" not in one.save(tmp_path / "one.json", samples).read_text("utf-8")


def test_an_interval_over_seeds_draws_seeds_and_samples_anew() -> None:
    values = np.random.default_rng(0).normal(size=(1, 50))
    assert crossed_interval(values, seed=3) == pytest.approx(mean_interval(values[0], seed=3))
    apart = np.stack([np.zeros(50), np.ones(50)])
    assert crossed_interval(apart) == (0, 1)
    low, high = crossed_interval(np.stack([np.arange(50.0)] * 3))
    assert (low, high) == pytest.approx(mean_interval(np.arange(50.0)))


def test_shared_start_counts_equal_parts() -> None:
    one = Sentence.of(Image("a.jpg"), "x", Image("b.jpg"))
    assert shared_start([one, Sentence.of(Image("a.jpg"), "x", Image("c.jpg"))]) == 2
    assert shared_start([one, one]) == 3
    assert shared_start([one, Sentence.of("x")]) == 0
    assert shared_start([one, Sentence.of(Image("a.jpg"))]) == 1
