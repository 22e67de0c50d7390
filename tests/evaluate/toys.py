"""Small systems for the tests of an evaluation, each with its gates open."""

from __future__ import annotations

from typing import Any

import torch

from graftlm import backbones
from graftlm.systems.base import System, system_class

FIELDS: dict[str, dict[str, Any]] = {
    "flamingo": {"num_latents": 3, "depth": 1, "heads": 4, "every": 1},
    "fromage": {"num_tokens": 2},
    "clipcap": {"num_tokens": 2},
}


def toy(name: str, **fields: Any) -> System:
    """A system of that name over a toy language model and a toy encoder, its answers fixed by a seed."""
    torch.manual_seed(0)
    cls = system_class(name)
    shared = {"lm": "toy", "encoder": "toy", "precision": "float32"}
    config = cls.Config.model_validate({**shared, **FIELDS.get(name, {}), **fields})
    system = cls.build(config, backbones.load_parts(config))
    with torch.no_grad():
        for key, parameter in system.trainable():
            if key.endswith("_gate"):
                parameter.fill_(0.8)
    return system.eval()
