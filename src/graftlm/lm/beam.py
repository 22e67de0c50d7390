"""Beam search: several partial answers per row, the best kept, compared by length-penalised log-probability.

The rules are those of transformers' `generate` with ``early_stopping=False``, with which it agrees hypothesis by
hypothesis: of the 2 x num_beams best continuations, those among the first num_beams that end are finished and
scored by sum / tokens ** length_penalty (EOS counts); the best that do not end go on; a row is complete when it has
num_beams finished answers and its best open one, scored at its present length, is not better than the worst of
them. ClipCap's released beam search differs: it divides while searching and keeps finished answers in the beam.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graftlm.errors import ConfigError
from graftlm.lm.base import LanguageModel, LMInputs, Tokenizer
from graftlm.lm.continuation import Continuation
from graftlm.lm.decode import Answer, Decoding, Hypothesis, control

_LOST = -1.0e9
"""Added to a beam that must not win; finite, so that a row most of whose continuations ended keeps its shape."""


@dataclass(slots=True)
class _Beam:
    """An open answer and the sum it is searched by (`answer.log_prob` is the sum without controls)."""

    answer: Answer
    total: float


@dataclass(slots=True)
class _Row:
    """One row of the batch."""

    beams: list[_Beam]
    finished: list[Hypothesis] = field(default_factory=list)

    def complete(self, num_beams: int, length: int, penalty: float) -> bool:
        """Whether no open beam is expected to beat the finished answers."""
        if self.beams[0].total < _LOST / 2:
            return True
        if len(self.finished) < num_beams:
            return False
        return not self.beams[0].total / length**penalty > min(one.score for one in self.finished)


@dataclass(frozen=True, slots=True)
class _Continuation:
    """One way on: token after beam `parent`; `total` as in `_Beam`, `log_prob` of the token without controls."""

    parent: int
    token: int
    total: float
    log_prob: float


@torch.inference_mode()
def search(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> list[list[Hypothesis]]:
    """The `num_return` best finished answers of every row. Raises: as `decode`."""
    width = decoding.num_beams
    if lm.vocab_size < 2 * width:
        raise ConfigError(f"decoding: {width} beams need a vocabulary of {2 * width} ids, found {lm.vocab_size}")
    batch = Continuation(lm, inputs, decoding.max_tokens)
    device = batch.logits.device
    batch.select(torch.arange(len(batch), device=device).repeat_interleave(width))
    rows = [_Row([_Beam(Answer(), _LOST if beam else 0.0) for beam in range(width)]) for _ in range(len(inputs))]
    going = rows
    for length in range(1, batch.room + 1):
        parents: list[int] = []
        still: list[_Row] = []
        ways = _continuations(batch.logits, going, decoding, lm.tokenizer.eos_id)
        for place, row in enumerate(going):
            chosen = _advance(row, ways[place], lm.tokenizer, decoding, last=length == batch.room)
            if length < batch.room and not row.complete(width, length, decoding.length_penalty):
                still.append(row)
                parents.extend(place * width + parent for parent in chosen)
        going = still
        if not going:
            break
        if parents != list(range(len(batch))):
            batch.select(torch.tensor(parents, device=device))
        batch.step(torch.tensor([beam.answer.ids[-1] for row in going for beam in row.beams], device=device))
    return [row.finished[: decoding.num_return] for row in rows]


def _continuations(logits: Tensor, rows: list[_Row], decoding: Decoding, eos_id: int) -> list[list[_Continuation]]:
    """The 2 x num_beams best ways on of every row, best first; logits (R * num_beams, V)."""
    width = decoding.num_beams
    beams = [beam for row in rows for beam in row.beams]
    plain = logits.float().log_softmax(dim=-1)  # (R * width, V)
    scores = control(plain, [beam.answer.ids for beam in beams], decoding, eos_id)
    totals = torch.tensor([beam.total for beam in beams], device=logits.device)
    best = (scores + totals[:, None]).view(len(rows), -1).topk(2 * width)  # (R, 2 * width) of width * V
    parents, tokens = best.indices // plain.shape[1], best.indices % plain.shape[1]
    own = plain.view(len(rows), -1).gather(1, best.indices)
    columns = zip(parents.tolist(), tokens.tolist(), best.values.tolist(), own.tolist(), strict=True)
    return [[_Continuation(*way) for way in zip(*row, strict=True)] for row in columns]


def _advance(
    row: _Row, ways: list[_Continuation], tokenizer: Tokenizer, decoding: Decoding, *, last: bool
) -> list[int]:
    """Finishes what ends and keeps the best of what does not; returns the kept beams' parents."""
    grown: list[tuple[_Beam, int]] = []
    for way in ways:
        before = row.beams[way.parent].answer
        answer = replace(before, ids=[*before.ids])
        answer.add(way.token, way.log_prob, tokenizer, decoding, last=last)
        grown.append((_Beam(answer, way.total), way.parent))
    for beam, _ in grown[: decoding.num_beams]:
        if beam.answer.done and beam.total > _LOST / 2:
            row.finished.append(_finish(beam, decoding.length_penalty))
    row.finished = sorted(row.finished, key=lambda one: -one.score)[: decoding.num_beams]
    going = [(beam, parent) for beam, parent in grown if not beam.answer.done]
    ended = [(_Beam(beam.answer, beam.total + _LOST), parent) for beam, parent in grown if beam.answer.done]
    kept = (going + ended)[: decoding.num_beams]
    row.beams = [beam for beam, _ in kept]
    return [parent for _, parent in kept]


def _finish(beam: _Beam, length_penalty: float) -> Hypothesis:
    answer = beam.answer
    score = beam.total / len(answer.ids) ** length_penalty
    return Hypothesis(answer.text, tuple(answer.ids), answer.log_prob, score)
