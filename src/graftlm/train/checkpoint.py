"""One moment of a run on disk: trained weights, optimiser, random states, clock and place in the data."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftlm.errors import CheckpointError
from graftlm.storage import (
    TEMPORARY,
    atomic_folder,
    read_json,
    read_tensors,
    step_folder,
    step_folders,
    step_of,
    verify,
    write_json,
    write_tensors,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One moment of a run. `state` is plain JSON: step, sampler, random states, clock, best value."""

    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Writes ``folder/step_000500`` and returns it."""
    target = step_folder(folder, step)
    with atomic_folder(target) as temporary:
        write_tensors(temporary / "trainable.safetensors", checkpoint.trainable)
        write_tensors(temporary / "optimizer.safetensors", checkpoint.optimizer)
        write_json(temporary / "state.json", checkpoint.state)
    return target


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint after checking every byte against its manifest. Raises: CheckpointError."""
    verify(folder)
    return Checkpoint(
        read_tensors(folder / "trainable.safetensors"),
        read_tensors(folder / "optimizer.safetensors"),
        read_json(folder / "state.json"),
    )


def prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the best one, and what a kill left behind."""
    old = [path for path in step_folders(folder)[:-keep_last] if step_of(path) != best_step]
    # What was set aside goes first: without its step beside it, it would be put back.
    for path in (*folder.glob(f"{TEMPORARY}*"), *old):
        shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, following = random.getstate()
    state = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "python": [version, list(numbers), following],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = [row.numpy().tobytes().hex() for row in torch.cuda.get_rng_state_all()]
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`. Raises: CheckpointError."""
    try:
        torch.set_rng_state(_bytes_tensor(state["torch"]))
        version, numbers, following = state["python"]
        random.setstate((version, tuple(numbers), following))
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([_bytes_tensor(row) for row in state["cuda"]])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"state.json: the random states cannot be restored ({error})") from None


def _bytes_tensor(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
