"""Fresh weights for a network that came with trained ones ("from scratch" baselines)."""

from __future__ import annotations

import torch
from torch import nn


def reinitialise(module: nn.Module, seed: int) -> None:
    """Draws every weight anew: linear maps and embeddings N(0, 0.02), convolutions Kaiming, norms at identity.

    Kaiming by fan-in, which is what one output reads: of a grouped convolution its own channels alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._NormBase):
                child.reset_running_stats()
            for name, parameter in child.named_parameters(recurse=False):
                if parameter.dim() < 2:
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
                else:
                    fan_in = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
