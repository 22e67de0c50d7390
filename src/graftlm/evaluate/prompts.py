"""Few-shot prompts: a worked example and a question are sentences, and a prompt is their sum.

A worked example is a picture, the words that ask, the answer and a new line, so that an answer ends at its line. In
the words of Flamingo (appendix of arXiv:2204.14198) a caption follows "Output:" and an answer "Question: ... Answer:";
those of open_flamingo have no space before the answer; `data` keeps the data's, which a captioner was trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graftlm.data.rows import tidied
from graftlm.data.sample import Sample
from graftlm.data.sentence import Part, Sentence, Text

END = "\n"
"""What closes a worked example, and ends an answer."""

TEXT_ONLY = 2
"""Worked examples without pictures that stand for none at all (Flamingo, arXiv:2204.14198)."""


@dataclass(frozen=True, slots=True)
class Style:
    """The words between a picture and its caption, or its answer, and what stands before the answer."""

    caption: str
    question: str
    before: str


STYLES: dict[str, Style | None] = {
    "paper": Style("Output:", "Question: {question} Answer:", " "),
    "open_flamingo": Style("Output:", "Question:{question} Short answer:", ""),
    "data": None,
}
"""By name; None: the words of the data."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a few-shot prompt was made of.

    Attributes:
        number: of the question among those asked
        shots: worked examples with a picture
        trial: number of the seed, from 0
        order: number of the permutation of the worked examples, from 0
        examples: their keys, in the order of the prompt
    """

    number: int
    shots: int
    trial: int = 0
    order: int = 0
    examples: tuple[str, ...] = ()


def is_question(sample: Sample) -> bool:
    """Whether a sample asks something about its picture, and is not captioned."""
    question = sample.metadata.get("question")
    return isinstance(question, str) and bool(question.strip())


def before_answer(style: Style | None) -> str:
    """What stands between the words that ask and a short answer."""
    return " " if style is None else style.before


def asked(sample: Sample, style: Style | None) -> Sentence:
    """Picture, the words that ask, and the answer as target; a caption is written as people write it."""
    target = sample.sentence.targets().text()
    answer = target.strip() if is_question(sample) else tidied(target)
    prompt = sample.sentence.prompt()
    if style is None:
        lead = target[: len(target) - len(target.lstrip())]
        return prompt + Sentence.of(Text(f"{lead}{answer}", target=True))
    question = str(sample.metadata.get("question", "")).strip()
    words = style.question.replace("{question}", question) if is_question(sample) else style.caption
    return Sentence.of(*prompt.media(), Text(words), Text(f"{style.before}{answer}", target=True))


def worked(sample: Sample, style: Style | None) -> Sentence:
    """A sample as a worked example, which ends with its line."""
    parts = asked(sample, style).context().parts
    last = parts[-1]
    assert isinstance(last, Text)
    return Sentence((*parts[:-1], replace(last, content=last.content + END)))


def without_pictures(sentence: Sentence) -> Sentence:
    """The words alone."""
    kept: tuple[Part, ...] = tuple(part for part in sentence if isinstance(part, Text))
    return Sentence(kept)


def few_shot(induction: str, shots: Sequence[Sentence], question: Sentence) -> Sentence:
    """The sum: what is to be done in words (task induction, Frozen §4, arXiv:2106.13884), worked examples, question."""
    start = Sentence.of(induction + END) if induction else Sentence()
    return sum((*shots, question), start=start)


def orders(count: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """Different permutations of `count` examples, at most `most`: the given order, then others drawn by the seed."""
    rng = random.Random(f"graftlm order {seed}")
    found = {tuple(range(count)): None}
    while len(found) < min(most, math.factorial(count)):
        found[tuple(rng.sample(range(count), count))] = None
    return list(found)
