"""The one decode loop: greedy, sampled and beam search over any `LanguageModel`.

The prompt is computed once, then every step feeds one token per row; only that position goes through the output
matrix, and rows that are finished leave the batch. The answer to a row depends neither on the other rows nor on
their order. Beam search lives in `beam.py`, changes of logits in `sampling.py`, stop strings in `stopping.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graftlm.errors import ConfigError
from graftlm.lm import sampling
from graftlm.lm.base import LanguageModel, LMInputs, Tokenizer
from graftlm.lm.continuation import Continuation
from graftlm.lm.sampling import TokenBias
from graftlm.lm.scoring import rank, score_candidates, score_labels
from graftlm.lm.stopping import UNFINISHED, find_end, settled

__all__ = ["Decoding", "Hypothesis", "TokenBias", "decode", "rank", "score_candidates", "score_labels", "stream"]

_WORTH_COMPACTING = 0.8  # of the rows: moving the cache costs about a sixth of a step


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is searched for. Greedy unless `num_beams` > 1 or `temperature` > 0.

    Attributes:
        max_tokens: most tokens of an answer, its EOS included
        min_tokens: before this many, neither EOS nor a stop string ends an answer
        num_beams: beams of beam search; 1 = none
        length_penalty: score = sum of log-probabilities / tokens ** length_penalty; above 0 favours long answers
        temperature: 0 takes the best token, above 0 draws
        top_k: draw among this many best tokens; 0 = all
        top_p: draw among the fewest best tokens of this probability mass; 1 = all
        seed: of the draws; an answer depends on it and on its own prompt alone
        repetition_penalty: above 1 makes tokens the answer already holds less likely; the prompt does not count
        no_repeat_ngram: no n-gram of this size twice in an answer; 0 = no control
        stop: the answer ends before the first of these strings ("\\n"), after it where it closes a sentence: . ! ?
        num_return: answers per row, best score first; more than one needs beams or a temperature
        biases: changes of single ids' logits, before every other control
        end_ids: ids that end an answer beside EOS ([RET] of FROMAGe)

    Raises: ConfigError for a value out of range or values that contradict each other.
    """

    max_tokens: int = 32
    min_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    stop: tuple[str, ...] = ()
    num_return: int = 1
    biases: tuple[TokenBias, ...] = ()
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranges = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "no_repeat_ngram": (self.no_repeat_ngram >= 0, "0 or more"),
            "num_return": (self.num_return >= 1, "at least 1"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                raise ConfigError(f"decoding: expected {name} to be {expected}, found {getattr(self, name)!r}")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError("decoding: num_beams searches and temperature draws; set one of them, not both")
        if self.num_beams > 1 and any(one.factor != 1 or one.absolute for one in self.biases):
            raise ConfigError("decoding: beam search compares log-probabilities, no logits to multiply; set a bias")
        if self.temperature == 0 and self.num_return > self.num_beams:
            raise ConfigError(
                f"decoding: {self.num_return} answers cannot come from {self.num_beams} beams; "
                "raise num_beams or set a temperature"
            )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One answer.

    Attributes:
        text: the words, cut at the stop, without half a character at the end
        ids: everything that was written, the closing EOS or the token with the stop included
        log_prob: sum of the log-probabilities of `ids` under the model itself: temperature 1, no controls
        score: what answers are ordered by: log-probability / tokens ** length_penalty, in beam search with controls
    """

    text: str
    ids: tuple[int, ...]
    log_prob: float
    score: float


def decode(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> list[list[Hypothesis]]:
    """Answers of every row, best first (`num_return` each). Any padding side.

    Raises: ShapeError when the inputs do not fit the LM, or a row has nothing to continue.
    """
    if len(inputs) == 0:
        return []
    if decoding.num_beams > 1:
        from graftlm.lm.beam import search

        return search(lm, inputs, decoding)
    answers = [Answer() for _ in range(len(inputs) * decoding.num_return)]
    for _ in _write(lm, inputs, decoding, answers):
        pass
    found = [answer.hypothesis(decoding) for answer in answers]
    groups = [found[start : start + decoding.num_return] for start in range(0, len(found), decoding.num_return)]
    return [sorted(group, key=lambda one: -one.score) for group in groups]


def stream(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> Iterator[str]:
    """The answer to one row, piece of text by piece of text; joined it equals `decode`'s text.

    Half a character and the beginning of a stop string are held back until what follows decides. Beam search
    knows its answer only at the end and gives it as one piece.
    Raises: ConfigError when the inputs are not one row or several answers are asked for.
    """
    if len(inputs) != 1 or decoding.num_return != 1:
        raise ConfigError(
            f"stream: expected one row and num_return 1, found {len(inputs)} and {decoding.num_return}; use decode"
        )
    if decoding.num_beams > 1:
        yield decode(lm, inputs, decoding)[0][0].text
        return
    answer = Answer()
    sent = 0
    for _ in _write(lm, inputs, decoding, [answer]):
        ready = len(answer.text) if answer.done else settled(answer.text, decoding.stop)
        if ready > sent:
            yield answer.text[sent:ready]
            sent = ready


@dataclass(slots=True)
class Answer:
    """An answer that is being written."""

    ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    text: str = ""
    done: bool = False
    searched: int = 0

    def add(
        self, token: int, log_prob: float, tokenizer: Tokenizer, decoding: Decoding, *, last: bool, live: bool = False
    ) -> None:
        """Writes one token and finds out whether the answer ends: it must if `last`. `live`: keep `text` current."""
        self.ids.append(token)
        self.log_prob += log_prob
        self.done = last or token == tokenizer.eos_id or token in decoding.end_ids
        if not (self.done or decoding.stop or live):
            return
        self.text = tokenizer.decode(self.ids)
        if len(self.ids) < decoding.min_tokens and not self.done:
            self.searched = len(self.text.rstrip(UNFINISHED))
            return
        end = find_end(self.text, decoding.stop, searched=self.searched)
        if end is not None:
            self.text, self.done = self.text[:end], True
        if self.done:
            self.text = self.text.rstrip(UNFINISHED)  # an answer cut inside a character ends before it

    def hypothesis(self, decoding: Decoding) -> Hypothesis:
        """The finished answer."""
        score = self.log_prob / max(1, len(self.ids)) ** decoding.length_penalty
        return Hypothesis(self.text, tuple(self.ids), self.log_prob, score)


def _write(lm: LanguageModel, inputs: LMInputs, decoding: Decoding, answers: list[Answer]) -> Iterator[None]:
    """Fills greedy or drawn answers, `num_return` per row, and pauses after every token."""
    with torch.inference_mode():
        batch = Continuation(lm, inputs, decoding.max_tokens)
        device = batch.logits.device
        if decoding.num_return > 1:
            batch.select(torch.arange(len(batch), device=device).repeat_interleave(decoding.num_return))
        uniform = _uniform(decoding, len(inputs)).to(device)  # (max_tokens, answers)
    rows = list(range(len(answers)))  # the answer each row of the batch belongs to
    live = len(answers) == 1
    for step in range(batch.room):
        # Not held across the pause: inference mode would leak into the caller of a generator.
        with torch.inference_mode():
            written = [answers[row].ids for row in rows]
            ids, log_probs = choose(batch.logits, written, decoding, lm.tokenizer.eos_id, uniform[step, rows])
        last = step == batch.room - 1
        for row, token, log_prob in zip(rows, ids.tolist(), log_probs.tolist(), strict=True):
            if not answers[row].done:
                answers[row].add(token, log_prob, lm.tokenizer, decoding, last=last, live=live)
        yield
        open_rows = [place for place, row in enumerate(rows) if not answers[row].done]
        if not open_rows:
            return
        with torch.inference_mode():
            # One row alone takes another kernel than two (a vector, not a matrix), with other rounding in bfloat16.
            if 1 < max(2, len(open_rows)) <= _WORTH_COMPACTING * len(rows):
                kept = open_rows if len(open_rows) > 1 else sorted({open_rows[0], 0 if open_rows[0] else 1})
                rows = [rows[place] for place in kept]
                chosen = torch.tensor(kept, device=device)
                batch.select(chosen)
                ids = ids[chosen]
            batch.step(ids)


def _uniform(decoding: Decoding, rows: int) -> Tensor:
    """Numbers in [0, 1) for the draws: (max_tokens, rows * num_return), the same for every row."""
    generator = torch.Generator().manual_seed(decoding.seed)
    numbers = torch.rand(decoding.max_tokens, decoding.num_return, generator=generator)
    return numbers.repeat(1, rows)


def choose(
    logits: Tensor, written: list[list[int]], decoding: Decoding, eos_id: int, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """The next id of every row, and its log-probability under the model itself.

    Shapes:
        logits: (R, V); uniform: (R,); returns: (R,) long, (R,) float32
    """
    plain = logits.float()
    scores = control(plain, written, decoding, eos_id)
    if decoding.temperature > 0:
        scores = scores / decoding.temperature
        if decoding.top_k:
            scores = sampling.keep_top_k(scores, decoding.top_k)
        if decoding.top_p < 1:
            scores = sampling.keep_top_p(scores, decoding.top_p)
        ids = sampling.draw(scores, uniform)
    else:
        ids = sampling.best(scores)
    return ids, plain.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]


def control(scores: Tensor, written: list[list[int]], decoding: Decoding, eos_id: int) -> Tensor:
    """Scores (R, V) after the repetition, n-gram and fewest-tokens controls; the same tensor where none is on."""
    if decoding.biases:
        scores = sampling.bias_tokens(scores, decoding.biases)
    if decoding.repetition_penalty != 1:
        scores = sampling.penalise_repetition(scores, written, decoding.repetition_penalty)
    if decoding.no_repeat_ngram:
        scores = sampling.forbid_repeated_ngrams(scores, written, decoding.no_repeat_ngram)
    if written and len(written[0]) < decoding.min_tokens:
        scores = sampling.forbid_id(scores, eos_id)
    return scores
