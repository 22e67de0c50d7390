"""Signs that a run learns nothing of the pictures: answers all alike, or no gap to the blind control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_DISTINCT_FRACTION = 0.3
LEAST_BLIND_GAP = 0.02
_LEAST_ANSWERS = 4


@dataclass(frozen=True, slots=True)
class Alarm:
    """One warning. `kind`: "alike", "empty" or "blind"; `value`: what was measured, beside its `limit`."""

    kind: str
    message: str
    value: float
    limit: float


def answers_alike(answers: Sequence[str]) -> Alarm | None:
    """Warns when sample answers hardly differ; too few answers say nothing."""
    if len(answers) < _LEAST_ANSWERS:
        return None
    if not any(answer.strip() for answer in answers):
        return Alarm("empty", f"all {len(answers)} sample answers are empty; the model stops at once", 0.0, 1.0)
    distinct = len({" ".join(answer.lower().split()) for answer in answers}) / len(answers)
    if distinct > LEAST_DISTINCT_FRACTION:
        return None
    message = f"the sample answers are all alike ({distinct:.0%} distinct); the model may not use its media"
    return Alarm("alike", message, distinct, LEAST_DISTINCT_FRACTION)


def no_blind_gap(loss: float, blind_loss: float) -> Alarm | None:
    """Warns when black pictures do as well as the real ones (losses in nats)."""
    gap = (blind_loss - loss) / max(loss, 1e-9)
    if gap >= LEAST_BLIND_GAP:
        return None
    message = f"loss {loss:.3f} with pictures, {blind_loss:.3f} with black ones; the model does not use what it sees"
    return Alarm("blind", message, gap, LEAST_BLIND_GAP)
