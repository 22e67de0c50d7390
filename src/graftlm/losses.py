"""Losses as functions: tensors in, scalars out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

IGNORED = -100
MAX_LOG_SCALE = math.log(100)  # of a learnt temperature (CLIP §2.5, arXiv:2103.00020)
_ROWS_AT_ONCE = 256
_ROWS_IN_CACHE = 8  # float32 logits of so many rows stay in a core's cache


def target_positions(labels: Tensor) -> Tensor:
    """Positions whose next token is a target: where logits are wanted.

    Shapes:
        labels: (B, L) long, unshifted, -100 = no target
        returns: (B, L) bool; True at t when labels[:, t + 1] is a target
    """
    return F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


def shifted_targets(labels: Tensor) -> Tensor:
    """The targets themselves, in the order of `target_positions`: (P,) long."""
    following = labels[:, 1:]
    return following[following != IGNORED]


def causal_lm(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean next-token cross-entropy in nats; 0 where there is no target.

    Shapes:
        logits: (P, V); targets: (P,) long
    """
    if targets.numel() == 0:
        return logits.sum() * 0.0
    if logits.device.type == "cpu" and not label_smoothing:
        loss: Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
        return loss
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


class _CrossEntropy(torch.autograd.Function):
    """The mean, with its gradient computed at once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        grads = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = summed_cross_entropy(logits, targets, grads, 1 / len(targets))
        if grads is not None:
            ctx.save_for_backward(grads)
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return scaled_gradient(ctx.saved_tensors[0], grad), None


def summed_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    grads: Tensor | None,
    factor: float,
    extra: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over rows, without gradient, a few rows at a time: no float32 copy of all logits is made.

    Where `grads` is given, the gradient times `factor` is written into it; it may be `logits` itself. `extra`: logits
    of E more ids behind the V, and where their gradient is written.
    Shapes:
        logits, grads: (P, V); targets: (P,) long; extra: (P, E) float32 each; returns: scalar float32
    """
    total, size = torch.zeros((), dtype=torch.float32), logits.shape[1]
    for start in range(0, len(targets), _ROWS_IN_CACHE):
        span = slice(start, start + _ROWS_IN_CACHE)
        rows, wanted = logits[span], targets[span, None]
        shares = rows.softmax(dim=-1, dtype=torch.float32)  # (R, V)
        whole = rows.amax(dim=-1).float() - shares.amax(dim=-1).log()  # (R,) log of the sum
        inside, hit = wanted.clamp(max=size - 1), -torch.ones(wanted.shape)
        found = rows.gather(1, inside)[:, 0].float()
        if extra is not None:
            own, own_grads = extra[0][span], extra[1][span]
            frozen, whole = whole, torch.logaddexp(whole, own.logsumexp(dim=-1))
            one = F.one_hot((wanted[:, 0] - size + 1).clamp(min=0), own.shape[1] + 1)[:, 1:]  # (R, E)
            found = torch.where(wanted[:, 0] < size, found, (own * one).sum(dim=-1))
            torch.mul((own - whole[:, None]).exp() - one, factor, out=own_grads)
            shares.mul_((frozen - whole).exp()[:, None])
            hit.masked_fill_(wanted >= size, 0.0)
        total += (whole - found).sum()
        if grads is not None:
            shares.scatter_add_(1, inside, hit)
            torch.mul(shares, factor, out=grads[span])
    return total


def scaled_gradient(grads: Tensor, grad: Tensor) -> Tensor:
    """A gradient that was computed beforehand, times that of its loss. Raises: RuntimeError for a second one."""
    if torch.is_grad_enabled():  # create_graph=True: the gradient was computed as a constant
        raise RuntimeError("causal_lm has no second derivative on a CPU; use torch's cross_entropy for one")
    return grads if float(grad) == 1.0 else grads * grad


def split_causal_lm(frozen: Tensor, extra: Tensor, targets: Tensor) -> Tensor:
    """`causal_lm` over a vocabulary of two parts, of which only the second needs a gradient.

    The same number and the same gradients as `causal_lm` of both parts side by side, without the gradient of the large
    one.

    Shapes:
        frozen: (P, V), taken as constant; extra: (P, E); targets: (P,) long in [0, V + E)
    """
    if targets.numel() == 0:
        return extra.sum() * 0.0
    size = frozen.shape[1]
    with torch.no_grad():
        pieces = torch.split(frozen, _ROWS_AT_ONCE)
        total = torch.cat([piece.float().logsumexp(dim=-1) for piece in pieces])  # (P,)
        chosen = frozen.gather(1, targets.clamp(max=size - 1)[:, None])[:, 0].float()
    own = extra.float().gather(1, (targets - size).clamp(min=0)[:, None])[:, 0]
    total = torch.logaddexp(total, extra.float().logsumexp(dim=-1))
    return (total - torch.where(targets < size, chosen, own)).mean()


def info_nce(left: Tensor, right: Tensor, log_scale: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric in-batch contrastive loss (arXiv:1807.03748; the mean of both directions).

    Shapes:
        left, right: (B, Q), L2-normalised here; log_scale: scalar, the logarithm of 1 / temperature
        same: (B,) long, as in `contrastive`
    """
    forth, back = contrastive(F.normalize(left.float(), dim=-1), F.normalize(right.float(), dim=-1), log_scale, same)
    return (forth + back) / 2


def contrastive(queries: Tensor, items: Tensor, log_scale: Tensor, same: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding the own item of every query, and the own query of every item (FROMAGe §3.2).

    Shapes:
        queries, items: (B, Q) float, L2-normalised; log_scale: scalar, log of 1 / temperature, at most MAX_LOG_SCALE
        same: (B,) long, equal where two rows belong to one item: such a pair is no negative; None, or all equal (the
            blind control): all are negatives
    """
    similarity = queries @ items.T * log_scale.clamp(max=MAX_LOG_SCALE).exp()
    if same is not None and bool((same != same[0]).any()):
        apart = (same[:, None] != same) | torch.eye(len(same), dtype=torch.bool, device=same.device)
        similarity = similarity.masked_fill(~apart, float("-inf"))
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(similarity, own), F.cross_entropy(similarity.T, own)


def gather(*batches: Tensor, exact: bool = True) -> list[Tensor]:
    """Each tensor's rows of all processes, one after the other: (B, ...) to (W * B, ...).

    Every process is to compute the same loss over all rows. When the gradients of the parameters are then averaged,
    they equal those of one process with all rows. `exact` False: the gathered rows have a gradient W times smaller,
    as in FROMAGe's released code.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(batches)
    world, rank = distributed.get_world_size(), distributed.get_rank()
    joined = []
    for rows in batches:
        everyone = [torch.empty_like(rows) for _ in range(world)]
        distributed.all_gather(everyone, rows.detach().contiguous())
        # The other processes compute the same loss, so the gradient they have for these rows is the one found here.
        everyone[rank] = rows * world - rows.detach() * (world - 1) if exact and rows.requires_grad else rows
        joined.append(torch.cat(everyone))
    return joined
