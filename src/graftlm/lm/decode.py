"""The one decode loop. (Contract; the loop is written in this file.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graftlm.lm.base import LanguageModel, LMInputs


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is searched for. Greedy unless `num_beams` > 1 or `temperature` > 0."""

    max_tokens: int = 32
    min_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0  # beam score = sum of log-probabilities / length ** length_penalty
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    stop: tuple[str, ...] = ()  # the answer ends before the first of these strings ("\n") or, for ".", after it
    num_return: int = 1


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One answer: text without the stop, ids, sum of log-probabilities under the model (temperature 1)."""

    text: str
    ids: tuple[int, ...]
    log_prob: float
    score: float


def decode(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> list[list[Hypothesis]]:
    """Answers of every row, best first (`num_return` each). Any padding side."""
    raise NotImplementedError


def stream(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> Iterator[str]:
    """The answer to one row, piece of text by piece of text; joined it equals `decode`'s text."""
    raise NotImplementedError


def score_labels(lm: LanguageModel, inputs: LMInputs) -> Any:
    """(B,) sum of target log-probabilities and (B,) number of targets."""
    raise NotImplementedError


def rank(sums: Sequence[float], counts: Sequence[int], *, normalise: bool) -> list[int]:
    """Candidates best first, by mean (`normalise`) or sum of log-probability."""
    raise NotImplementedError
