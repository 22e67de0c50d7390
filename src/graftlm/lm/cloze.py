"""Where the word of a class is decided: before it in a causal language model, at the mask in a masked one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from graftlm.errors import ShapeError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.losses import IGNORED, shifted_targets, target_positions


def cloze_places(lm: LanguageModel, labels: Tensor) -> Tensor:
    """The position of every row whose logits decide the class: (B, L) labels to (B, L) bool, one True a row.

    Raises: ShapeError for a row without a target, or with nothing before it in a causal model.
    """
    is_target = labels != IGNORED
    first = is_target & (is_target.cumsum(dim=1) == 1)
    if lm.is_causal:
        first = F.pad(first[:, 1:], (0, 1), value=False)
    if not bool((first.sum(dim=1) == 1).all()):
        raise ShapeError(
            "expected one word of a class in every sentence and words before it, found a row without; "
            "read the data with a template"
        )
    return first


def cloze_logits(lm: LanguageModel, inputs: LMInputs) -> Tensor:
    """Logits (B, V) where the class is decided; nothing that stands behind is computed in a causal model.

    Raises: ShapeError without labels, or where `cloze_places` finds none.
    """
    if inputs.labels is None:
        raise ShapeError("cloze: expected inputs with labels, found none; keep the word of the class in the sentence")
    at = cloze_places(lm, inputs.labels)
    if lm.is_causal:
        inputs, at = inputs.up_to(at)
    logits: Tensor = lm(inputs, at=at).logits
    return logits


def target_loss(lm: LanguageModel, inputs: LMInputs) -> Tensor:
    """Mean cross-entropy of the targets: of the next token, or of the masked one; what is behind is not computed."""
    assert inputs.labels is not None
    labels = inputs.labels
    if not lm.is_causal:
        at = labels != IGNORED
        return lm.target_loss(inputs, at, labels[at])
    inputs, at = inputs.up_to(target_positions(labels))
    return lm.target_loss(inputs, at, shifted_targets(labels))
