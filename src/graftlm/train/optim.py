"""AdamW over the trained part, and its rate: linear warm-up, then a cosine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.config import TrainTable
from graftlm.errors import CheckpointError, ConfigError
from graftlm.train.row_adamw import RowAdamW


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate as a function of the step and of how far the run is.

    Steps and minutes may both end a run; whichever is further along sets the rate. With minutes set, the rate
    follows the clock, so only runs that are bounded by steps alone are repeatable to the bit.

    Attributes:
        peak: learning rate after the warm-up; warmup_steps: steps of linear warm-up
        final_fraction: of `peak`, where the cosine ends
        total_steps, total_s: the bounds of the run, in steps and in seconds of training; None = unbounded
    """

    peak: float
    warmup_steps: int
    final_fraction: float
    total_steps: int | None
    total_s: float | None

    def progress(self, step: int, elapsed_s: float) -> float:
        """The part of the run that is over, in [0, 1]; `step`: steps already taken."""
        by_steps = step / self.total_steps if self.total_steps else 0.0
        by_time = elapsed_s / self.total_s if self.total_s else 0.0
        return min(1.0, max(by_steps, by_time))

    def is_over(self, step: int, elapsed_s: float) -> bool:
        """Whether a bound is reached."""
        by_steps = self.total_steps is not None and step >= self.total_steps
        return by_steps or (self.total_s is not None and elapsed_s >= self.total_s)

    def lr(self, step: int, elapsed_s: float) -> float:
        """Learning rate of the step after `step` steps."""
        progress = self.progress(step, elapsed_s)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        rate = self.peak * (self.final_fraction + (1 - self.final_fraction) * cosine)
        return rate * min(1.0, (step + 1) / (self.warmup_steps + 1))


def schedule_of(table: TrainTable, steps_per_epoch: int | None) -> Schedule:
    """The schedule of a recipe; `steps_per_epoch` in optimiser steps, None for a stream.

    Raises: ConfigError when epochs are to be counted on a stream.
    """
    bounds = [table.max_steps] if table.max_steps else []
    if table.epochs:
        if steps_per_epoch is None:
            raise ConfigError("train.epochs: a stream has no known length; set train.max_steps or train.max_minutes")
        bounds.append(table.epochs * max(1, steps_per_epoch))
    seconds = table.max_minutes * 60 if table.max_minutes else None
    return Schedule(table.lr, table.warmup_steps, table.final_lr_fraction, min(bounds, default=None), seconds)


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], table: TrainTable) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; biases, norms and single vectors are left alone, tables moved row by row.

    Raises: ConfigError when nothing is trained or a trained parameter is not in float32.
    """
    named = list(parameters)
    if not named:
        raise ConfigError("expected at least one trained parameter, found none; choose another system or option")
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"trained parameter {name}: expected float32, found {parameter.dtype}; set system.precision to float32"
            )
    matrices = [parameter for _, parameter in named if parameter.dim() >= 2]
    vectors = [parameter for _, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": table.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return RowAdamW([group for group in groups if group["params"]], lr=table.lr, betas=(0.9, table.beta2), fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, "exp_avg/connector.weight"; `names`: parameter id to name."""
    flat: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            flat[f"{key}/{names[id(parameter)]}"] = torch.as_tensor(value).detach()
    return flat


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor], names: dict[int, str]) -> None:
    """The inverse of `optimizer_tensors`. Raises: CheckpointError when a name or a shape does not fit."""
    parameters = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    states: dict[str, dict[str, Any]] = {}
    for name, tensor in flat.items():
        key, _, owner = name.partition("/")
        if owner not in parameters:
            raise CheckpointError(f"optimizer.safetensors: '{name}' belongs to no trained parameter; start a new run")
        parameter = parameters[owner]
        wanted = parameter.shape[:1] if key == "step" else parameter.shape  # a table counts by row
        if tensor.dim() and tensor.shape != wanted:
            raise CheckpointError(
                f"optimizer.safetensors: '{name}': expected shape {list(wanted)}, found {list(tensor.shape)}"
            )
        states.setdefault(owner, {})[key] = tensor.clone() if key == "step" else tensor.to(parameter.device).clone()
    missing = sorted(set(parameters) - set(states)) if states else []
    if missing:
        raise CheckpointError(f"optimizer.safetensors: no state for {json.dumps(missing[:3])}; start a new run")
    for owner, state in states.items():
        optimizer.state[parameters[owner]] = state
