"""Low-rank updates of frozen linear maps (LoRA, arXiv:2106.09685), through peft."""

from __future__ import annotations

from typing import Any

from graftlm.errors import MissingExtraError


def inject_lora(model: Any, rank: int) -> None:
    """Adds trainable float32 updates to every linear map of a transformers model, in place.

    Raises: MissingExtraError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtraError("peft", "scale", "LoRA") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
