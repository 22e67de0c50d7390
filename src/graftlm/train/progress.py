"""How far a run is, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from graftlm.errors import CheckpointError


@dataclass(slots=True)
class Progress:
    """How far a run is; all of it goes through the checkpoint.

    Attributes:
        step: optimiser steps taken; sentences: sentences seen
        elapsed_s: wall time of the loop, earlier sessions included; train_s: of its steps alone
        best: lowest value of the best metric, its step and all losses there; {} before the first validation
        last: losses of the last validation; stale: validations since the best one; validated: step of the last one
        stopped_by: "steps", "time" or "patience" once the run is over, else ""
    """

    step: int = 0
    sentences: int = 0
    elapsed_s: float = 0.0
    train_s: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    validated: int = -1
    stopped_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises: CheckpointError."""
        if set(row) != set(cls.__dataclass_fields__):
            raise CheckpointError(f"progress: expected {sorted(cls.__dataclass_fields__)}, found {sorted(row)}")
        return cls(**row)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to.

    Attributes:
        folder: the run; graft: the exported graft
        loss, blind_loss: last validation, in nats; None without validation
        seconds: wall time of the loop over all sessions; captions_per_s: of its steps alone
        frozen_unchanged: always True, else FrozenError was raised; frozen_fingerprint: digest of all frozen tensors
        guard_s: time this session spent proving it
    """

    folder: Path
    graft: Path
    steps: int
    sentences: int
    seconds: float
    captions_per_s: float
    stopped_by: str
    best: dict[str, Any]
    loss: float | None
    blind_loss: float | None
    trainable_parameters: int
    frozen_unchanged: bool
    frozen_fingerprint: str
    guard_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "folder": str(self.folder), "graft": str(self.graft)}
