"""How likely given words are: log-likelihood of targets, and of many continuations of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftlm.errors import ShapeError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.continuation import Continuation
from graftlm.losses import shifted_targets, target_positions

_CHUNK = 256


@torch.inference_mode()
def score_labels(lm: LanguageModel, inputs: LMInputs) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every row's targets, in nats, and their number.

    Shapes:
        inputs.labels: (B, L); returns: (B,) float sums, (B,) long counts; a row without target has 0 and 0
    Raises: ShapeError when the inputs hold no labels.
    """
    if inputs.labels is None:
        raise ShapeError("score_labels: expected inputs with labels, found none; mark what is to be scored as target")
    wanted = target_positions(inputs.labels)  # (B, L)
    values = log_probs_of(lm(inputs, at=wanted).logits, shifted_targets(inputs.labels))  # (P,)
    return _per_row(values, wanted)


@torch.inference_mode()
def score_candidates(
    lm: LanguageModel,
    inputs: LMInputs,
    candidates: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    shifted: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of continuations of one prompt, which is computed once: what `score_labels` gives row by row.

    `shifted` False: of every id after that id itself has been read, not before, an error of released evaluation code
    (FROMAGe's VisDial script) whose numbers can be had in no other way.

    Shapes:
        inputs: one row, labels ignored; candidates: C lists of ids, an EOS included where it is to be scored
        returns: (C,) float sums in nats, (C,) long counts
    Raises: ShapeError when the prompt is not one row or a candidate is empty.
    """
    if len(inputs) != 1:
        raise ShapeError(f"score_candidates: expected one prompt, found {len(inputs)} rows")
    if not all(candidates):
        raise ShapeError("score_candidates: expected at least one id in every candidate, found an empty one")
    if not candidates:
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    prompt = Continuation(lm, inputs, max(len(ids) for ids in candidates) + (not shifted))
    sums = [
        _score_batch(lm, prompt, candidates[start : start + batch_size], shifted=shifted)
        for start in range(0, len(candidates), batch_size)
    ]
    return torch.cat(sums), torch.tensor([len(ids) for ids in candidates])


def _score_batch(
    lm: LanguageModel, prompt: Continuation, candidates: Sequence[Sequence[int]], *, shifted: bool
) -> Tensor:
    device = prompt.logits.device
    rows, length = len(candidates), max(len(ids) for ids in candidates)
    ids = torch.full((rows, length), lm.tokenizer.pad_id, device=device)
    mask = torch.zeros(rows, length, dtype=torch.bool, device=device)
    for row, candidate in enumerate(candidates):
        ids[row, : len(candidate)] = torch.tensor(list(candidate), device=device)
        mask[row, : len(candidate)] = True
    branch = prompt.branch(rows)
    if not shifted:
        branch.extend(lm.embed(ids), mask)
        return _per_row(log_probs_of(branch.logits, ids[mask]), mask)[0]
    sums = log_probs_of(branch.logits, ids[:, 0])  # (C,) the first id follows the prompt
    if length > 1:
        follows = torch.nn.functional.pad(mask[:, 1:], (0, 1))  # (C, T) positions whose next id is a target
        branch.extend(lm.embed(ids[:, :-1]), mask[:, :-1], follows[:, :-1])
        values = log_probs_of(branch.logits, ids[:, 1:][mask[:, 1:]])
        sums = sums + _per_row(values, follows)[0]
    return sums


def log_probs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target: logits (P, V) and targets (P,) long to (P,) float32."""
    pieces = [
        part.float().gather(1, ids[:, None])[:, 0] - part.float().logsumexp(dim=-1)
        for part, ids in zip(torch.split(logits, _CHUNK), torch.split(targets, _CHUNK), strict=True)
    ]
    return torch.cat(pieces)


def _per_row(values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    owners = wanted.nonzero()[:, 0]
    sums = torch.zeros(len(wanted), dtype=torch.float32, device=values.device).index_add_(0, owners, values)
    return sums, wanted.sum(dim=1)


def rank(sums: Sequence[float], counts: Sequence[int], *, normalise: bool) -> list[int]:
    """Candidates best first, by mean (`normalise`) or sum of log-probability; the earlier wins a tie."""
    if len(sums) != len(counts):
        raise ShapeError(f"rank: {len(sums)} sums do not fit {len(counts)} counts")
    pairs = zip(sums, counts, strict=True)
    values = [float(total) / max(1, int(count)) if normalise else float(total) for total, count in pairs]
    return sorted(range(len(values)), key=lambda index: -values[index])
