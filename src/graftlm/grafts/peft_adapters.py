"""Prompts and prefixes to and from peft: folders of adapter_config.json and adapter_model.safetensors.

The layouts agree: (K, D) vectors before the words, or (K, 2 * layers * width) keys and values, a layer's keys before
its values. A network behind a prompt is run once and left behind. What a user of peft has to know: here BOS stands
between the prompt and the words, where the language model has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.backbones import load_parts
from graftlm.errors import CheckpointError, UsageError
from graftlm.storage import read_json, read_tensors, replace_file, tensor_bytes, write_json
from graftlm.systems.base import System, system_class

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_KEY = "prompt_embeddings"
_PARTS = {"prompt_tuning": "prompt", "ppt": "prompt", "prefix_tuning": "prefix"}
_SYSTEMS = {"PROMPT_TUNING": "prompt_tuning", "P_TUNING": "prompt_tuning", "PREFIX_TUNING": "prefix_tuning"}


def export_peft(system: System, folder: str | Path) -> Path:
    """Writes the prompt or the prefix of a system as a peft adapter.

    Raises: UsageError for a system that has neither, or a head beside it, which peft would not find.
    """
    if system.name not in _PARTS or getattr(system, "head", None) is not None:
        what = f"{system.name} with a pooled head" if system.name in _PARTS else system.name
        raise UsageError(f"export to peft: expected {', '.join(_PARTS)} with a cloze, found {what}; keep it as a graft")
    part: Any = getattr(system, _PARTS[system.name])
    with torch.no_grad():
        tokens: Tensor = part.tokens().float().contiguous().cpu()
    folder = Path(folder)
    replace_file(folder / TENSORS, tensor_bytes({_KEY: tokens}))
    write_json(folder / CONFIG, _config(system, len(tokens)))
    return folder


def import_peft(folder: str | Path, *, lm: str = "", precision: str = "bfloat16") -> System:
    """The system of a peft adapter: prompt tuning, P-tuning (as the prompt it wrote) or prefix tuning.

    `lm`: the language model, that of the adapter without.
    Raises: CheckpointError when it is none of these or does not fit the language model; BackboneError.
    """
    folder = Path(folder)
    described = read_json(folder / CONFIG)
    kind = str(described.get("peft_type"))
    if kind not in _SYSTEMS:
        known = ", ".join(_SYSTEMS)
        raise CheckpointError(f"{folder / CONFIG}: expected peft_type to be one of {known}, found {kind}")
    tokens = read_tensors(folder / TENSORS).get(_KEY)
    if tokens is None or tokens.dim() != 2:
        raise CheckpointError(f"{folder / TENSORS}: expected a matrix '{_KEY}', found none; save the adapter with peft")
    cls = system_class(_SYSTEMS[kind])
    given = {"lm": lm or str(described.get("base_model_name_or_path") or ""), "precision": precision}
    init = {"init": "random"} if kind == "PREFIX_TUNING" else {}
    longest = max(384, 2 * len(tokens))
    try:
        config = cls.Config.model_validate({**given, **init, "num_tokens": len(tokens), "max_length": longest})
    except ValueError as error:
        raise CheckpointError(
            f"{folder / TENSORS}: expected 1 to 512 soft tokens, found {len(tokens)} ({str(error).splitlines()[0]})"
        ) from None
    system = cls.build(config, load_parts(config))
    part: Any = getattr(system, _PARTS[system.name])
    if tokens.shape != part.vectors.shape:
        raise CheckpointError(
            f"{folder}: expected {_KEY} of shape {list(part.vectors.shape)} for '{given['lm']}', found "
            f"{list(tokens.shape)}; name the language model it was trained with"
        )
    part.vectors.data.copy_(tokens)
    return system.eval()


def _config(system: System, num_tokens: int) -> Mapping[str, Any]:
    """What peft needs to read it without asking the language model."""
    lm = system.lm
    found: dict[str, Any] = {
        "base_model_name_or_path": getattr(lm, "name", ""),
        "inference_mode": True,
        "num_virtual_tokens": num_tokens,
        "num_transformer_submodules": 1,
        "num_layers": lm.num_layers,
        "task_type": "CAUSAL_LM" if lm.is_causal else "FEATURE_EXTRACTION",
    }
    geometry = lm.prefix_geometry
    if _PARTS[system.name] == "prompt":
        heads = {"num_attention_heads": geometry.num_kv_heads}
        return {**found, **heads, "peft_type": "PROMPT_TUNING", "token_dim": lm.dim}
    width = geometry.num_kv_heads * geometry.head_dim
    sizes = {"token_dim": width, "num_attention_heads": geometry.num_kv_heads, "encoder_hidden_size": width}
    return {**found, **sizes, "peft_type": "PREFIX_TUNING", "prefix_projection": False}
