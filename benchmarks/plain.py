"""A bundled language model as transformers loads it, nothing of GraftLM around it."""

from __future__ import annotations

from typing import Any

import torch

from graftlm import backbones


def transformers_model(name: str, precision: str) -> Any:
    """The model over GraftLM's converted folder, or of a folder or hub id."""
    from transformers import AutoModelForCausalLM

    backbones.load_lm(name, precision)  # converted on first use
    packaged = backbones.PACKAGED_LMS.get(name)
    version = packaged.requirement.partition("==")[2] if packaged else ""
    folder = str(backbones.home() / "backbones" / f"{name}@{version}") if packaged else name
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
