"""Fresh weights for a network that came with trained ones ("from scratch" baselines)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_DRAWN = "_is_hf_initialized"
"""Where transformers notes that a weight came from a file and is not to be drawn."""


def reinitialise(module: nn.Module, seed: int) -> None:
    """Draws every weight anew: a network of transformers by its own rules, all else by the rules below.

    Linear maps and embeddings N(0, 0.02), convolutions Kaiming, norms and layer scales at identity. Kaiming by fan-in,
    which is what one output reads: of a grouped convolution its own channels alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._NormBase):
                child.reset_running_stats()
            for name, parameter in child.named_parameters(recurse=False):
                _draw(name, parameter, generator)
    # Only the network itself knows where its norms multiply by 1 + weight, or how small a layer scale begins.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for network in _with_own_rules(module):
            for part in (*network.modules(), *network.parameters(), *network.buffers()):
                if hasattr(part, _DRAWN):
                    delattr(part, _DRAWN)
            network.init_weights()


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.dim() < 2:
        is_factor = name in ("weight", "gamma", "lambda1") or "scale" in name
        parameter.fill_(1.0 if is_factor else 0.0)
    elif parameter.dim() == 2:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    else:
        fan_in = parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5)


def _with_own_rules(module: nn.Module) -> Iterator[Any]:
    """The outermost networks that know how their weights are drawn."""
    if callable(getattr(module, "_init_weights", None)) and callable(getattr(module, "init_weights", None)):
        yield module
        return
    for child in module.children():
        yield from _with_own_rules(child)
