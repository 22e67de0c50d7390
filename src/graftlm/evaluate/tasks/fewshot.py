"""Few-shot: captions and answers after k worked examples (Flamingo §3.2, arXiv:2204.14198; Frozen §4, 2106.13884)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence
from graftlm.errors import DataError, UsageError
from graftlm.evaluate import shots
from graftlm.evaluate.answers import answer_all, prompt_key
from graftlm.evaluate.metrics import vqa
from graftlm.evaluate.metrics.ngrams import Floats
from graftlm.evaluate.prompts import (
    STYLES,
    TEXT_ONLY,
    Shown,
    asked,
    before_answer,
    few_shot,
    is_question,
    orders,
    without_pictures,
    worked,
)
from graftlm.evaluate.shots import Place, shown
from graftlm.evaluate.support import SELECTIONS, Support
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task, Typed, numbers, text, whole
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Likelihood, Responder

_ANSWER_TOKENS = 10


class FewShot(Task):
    """CIDEr of captions, or VQA accuracy of answers, at every number of shots: "CIDEr@0", "CIDEr@4" ...

    Worked examples come from the support split, for each of several seeds; a score is the mean over the seeds. Without
    a shot two examples are told in words alone, the same for every question (``zero=none``: none). Unlike those of
    open_flamingo they are random under RICES too, where the nearest captions would tell what is in the picture.
    ``answer=rank`` compares the likelihoods of the given choices, averaged over permutations of the examples.

    Controls change the pictures of examples and question alike. The words of the examples stay those chosen by the true
    picture, so that what a control reaches under RICES was copied from them, not seen.
    """

    name: ClassVar[str] = "fewshot"
    headline: ClassVar[str] = "CIDEr"
    settings: ClassVar[Mapping[str, tuple[str, ...] | Typed]] = {
        "shots": numbers("0,4,8", 0, 64),
        "select": tuple(SELECTIONS),
        "support": text("train"),
        "pool": whole(0, 0, 10**9),
        "seeds": whole(1, 1, 64),
        "style": tuple(STYLES),
        "induction": text(),
        "zero": ("text", "none"),
        "answer": ("open", "rank"),
        "permutations": whole(6, 1, 24),
        "score": ("mean", "sum"),
        "encoder": text(),
    }

    def decoding(self, beam: int) -> Decoding:
        """Up to 40 tokens, one line; answers to questions are of at most 10."""
        return Decoding(max_tokens=40, num_beams=beam, stop=("\n",))

    def support_split(self, settings: Mapping[str, Any]) -> str | None:
        """The split of the worked examples, where any are shown."""
        return self.chosen(settings, "support") if _Plan.of(self, settings).most_examples else None

    def prepare(self, samples: Sequence[Sample], options: Options) -> Sequence[Sample]:
        """A prompt for every number of shots, seed, sample and permutation, in this order; `shots.shown` tells which.

        Raises: DataError when a sample lacks what the task needs, or the support set lacks examples; UsageError for
            RICES without an encoder.
        """
        plan = _Plan.of(self, options.settings)
        _check(samples, ranks=plan.ranks)
        prompts: list[Sample] = []
        for trial in range(self.value(options.settings, "seeds")):
            seed = options.seed + trial
            size = self.value(options.settings, "pool")
            support = (
                Support(options.support, size=size, seed=seed, pooled=options.pooled) if plan.most_examples else None
            )
            for number, sample in enumerate(samples):
                for sentence, made in plan.prompts(sample, support, seed):
                    metadata = {**sample.metadata, "shown": replace(made, number=number, trial=trial)}
                    prompts.append(replace(sample, sentence=sentence, metadata=metadata))
        return sorted(prompts, key=_place)

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that cannot score answers where they are ranked; ShapeError for a prompt
        that has no room in it.
        """
        _check_room(responder, samples)
        asks = is_question(samples[0])
        ranks = self.chosen(options.settings, "answer") == "rank"
        answers = (self._ranked if ranks else self._written)(responder, samples, options, progress)
        single = [sample for sample in samples if not shown(sample).order]
        first = next(iter(answers))
        references = [_references(sample) for sample in single if _place(sample)[:2] == first]
        score = shots.of_answers if asks else shots.of_captions
        scored = {place: score(found, references) for place, found in answers.items()}
        metrics, ends = shots.summary(answers, scored, options)
        headline = "accuracy" if asks else "CIDEr"
        rows: tuple[Row, ...] = shots.rows(single, answers, scored)
        notes = ["controls keep the words of the worked examples: what they reach comes from those, not from a picture"]
        notes += shots.by_seed(scored, headline, options.seed)
        return Outcome(rows, metrics, ends, tuple(notes), headline)

    def _written(
        self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress
    ) -> dict[Place, list[str]]:
        """What was written, without what belongs to a next example."""
        asks = is_question(samples[0])
        decoding = options.decoding or self.decoding(options.beam)
        if asks and options.decoding is None:
            decoding = replace(decoding, max_tokens=_ANSWER_TOKENS)
        texts = answer_all(
            responder,
            [sample.sentence for sample in samples],
            decoding,
            batch_size=options.batch_size,
            stage="answers",
            progress=progress,
        )
        found: dict[Place, list[str]] = {}
        for sample, words in zip(samples, texts, strict=True):
            found.setdefault(_place(sample)[:2], []).append(vqa.cut(words) if asks else _caption(words))
        return found

    def _ranked(
        self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress
    ) -> dict[Place, list[str]]:
        """The likeliest choice of every question."""
        if not isinstance(responder, Likelihood):
            raise UsageError("fewshot: expected a system that scores answers for answer=rank, found one that does not")
        before = before_answer(STYLES[self.chosen(options.settings, "style")])
        is_mean = self.chosen(options.settings, "score") == "mean"
        known: dict[Hashable, Floats] = {}
        totals: dict[tuple[Place, int], Floats] = {}
        choices: dict[int, Sequence[str]] = {}
        for done, sample in enumerate(samples):
            progress("answers", done, len(samples))
            *_, number, _ = _place(sample)
            choices[number] = sample.metadata["choices"]
            key = (prompt_key(sample.sentence.prompt()), tuple(choices[number]))
            if key not in known:
                texts = [f"{before}{choice}" for choice in choices[number]]
                sums, counts = responder.log_likelihoods(sample.sentence, texts)
                known[key] = (sums / counts if is_mean else sums).double().cpu().numpy()
            group = (_place(sample)[:2], number)
            totals[group] = totals.get(group, 0.0) + known[key]
        progress("answers", len(samples), len(samples))
        found: dict[Place, list[str]] = {}
        for (place, number), total in totals.items():
            found.setdefault(place, []).append(choices[number][int(total.argmax())])
        return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the prompts of one question are made."""

    counts: tuple[int, ...]
    select: str
    style: str
    induction: str
    tells: bool  # whether no shots stand for two examples in words alone
    ranks: bool
    permutations: int

    @classmethod
    def of(cls, task: FewShot, settings: Mapping[str, Any]) -> Self:
        """The plan that settings make."""
        ranks = task.chosen(settings, "answer") == "rank"
        return cls(
            counts=task.value(settings, "shots"),
            select=task.chosen(settings, "select"),
            style=task.chosen(settings, "style"),
            induction=task.chosen(settings, "induction"),
            tells=task.chosen(settings, "zero") == "text" and not ranks,  # a close-ended task needs none
            ranks=ranks,
            permutations=task.value(settings, "permutations") if ranks else 1,
        )

    @property
    def most_examples(self) -> int:
        """The most worked examples in a prompt, those in words alone among them."""
        return max(TEXT_ONLY if self.tells and not count else count for count in self.counts)

    def prompts(self, sample: Sample, support: Support | None, seed: int) -> Iterator[tuple[Sentence, Shown]]:
        """The prompts of one question."""
        style = STYLES[self.style]
        question = asked(sample, style)
        most = max(self.counts)
        chosen = SELECTIONS[self.select](support, sample, most) if support and most else []
        for count in self.counts:
            # The nearest stand last, and fewer shots are the nearest of them; else fewer are the first drawn.
            examples = chosen[most - count :] if self.select == "rices" else chosen[:count]
            told = [worked(one, style) for one in examples]
            if not count and self.tells and support:
                examples = support.fixed(sample, TEXT_ONLY)
                told = [without_pictures(worked(one, style)) for one in examples]
            for order, places in enumerate(orders(len(told), self.permutations, seed)):
                sentence = few_shot(self.induction, [told[place] for place in places], question)
                yield sentence, Shown(0, count, 0, order, tuple(examples[place].key for place in places))


def _place(sample: Sample) -> tuple[int, int, int, int]:
    made = shown(sample)
    return made.shots, made.trial, made.number, made.order


def _references(sample: Sample) -> list[str]:
    return [reference for reference in sample.references if reference.strip()]


def _check(samples: Sequence[Sample], *, ranks: bool) -> None:
    if len({is_question(sample) for sample in samples}) > 1:
        raise DataError("fewshot: expected captioned photos or questions, found both; name one kind of data")
    for sample in samples:
        if not sample.sentence.prompt().media():
            raise DataError(f"fewshot: expected a picture in '{sample.key}', found none")
        if not _references(sample):
            raise DataError(f"fewshot: expected at least one reference for '{sample.key}', found none")
        if ranks and not sample.metadata.get("choices"):
            raise DataError(f"fewshot: expected choices in '{sample.key}' for answer=rank, found none; use answer=open")


def _check_room(responder: Responder, samples: Sequence[Sample]) -> None:
    """Asks the system whether the longest prompts fit, before hours of answers to shorter ones. Raises: ShapeError."""
    length = getattr(responder, "length", None)
    if length is None or not getattr(responder, "has_lm", True):
        return
    longest: dict[int, Sample] = {}
    for sample in samples:
        best = longest.setdefault(shown(sample).shots, sample)
        if len(sample.sentence.text()) > len(best.sentence.text()):
            longest[shown(sample).shots] = sample
    for sample in longest.values():
        length(sample.sentence.prompt())


def _caption(words: str) -> str:
    """A caption in what a model wrote: nothing from the next example on, no quotes."""
    return words.partition("Output")[0].replace('"', "").strip()
