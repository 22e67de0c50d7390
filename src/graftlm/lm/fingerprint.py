"""What a language model is, as one digest: its weights, its config and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# What transformers writes into a config without changing the model, or changes from version to version.
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}


def model_fingerprint(
    weights: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> str:
    """SHA-256 (hex) of weights by name, type, shape and bytes, and of what config and tokenizer say.

    `weights` may be lazy, so that a model larger than memory can be read tensor by tensor; they come in name order.
    """
    kept = {name: value for name, value in config.items() if name not in _VOLATILE and not name.startswith("_")}
    settings = json.dumps([kept, tokenizer], sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode())
    for name, tensor in weights:
        whole = tensor.detach().contiguous().cpu()
        digest.update(f"\0{name}\0{whole.dtype}\0{tuple(whole.shape)}\0".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
