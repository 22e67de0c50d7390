"""Which process this is and of how many: one without a launcher, several under torchrun or accelerate launch."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]


def processes() -> PartialState:
    """The state all parts of a run share. Without an accelerator, several processes need to be told to use the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())


def accelerator() -> Accelerator:
    """Device and communication of this process."""
    processes()
    return Accelerator(cpu=not torch.accelerator.is_available())
