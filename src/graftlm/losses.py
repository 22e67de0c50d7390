"""Losses as functions: tensors in, scalars out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


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
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def info_nce(left: Tensor, right: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric in-batch contrastive loss (arXiv:1807.03748; the mean of both directions).

    Shapes:
        left, right: (B, Q), L2-normalised here; log_scale: scalar, the logarithm of 1 / temperature
    """
    similarity = F.normalize(left.float(), dim=-1) @ F.normalize(right.float(), dim=-1).T * log_scale.exp()
    own = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
