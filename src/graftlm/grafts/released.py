"""Weights that others have released, under our names: FROMAGe's checkpoints of k = 1 and k = 4 visual tokens.

The released files hold ``model.visual_embeddings`` (picture to LM), ``model.visual_fc`` (picture to retrieval space),
``model.text_hidden_fcs.N.0`` ([RET] to retrieval space, one a layer), ``model.logit_scale`` and [RET]'s row as
``ret_input_embeddings.weight``, or as the last row of a whole embedding matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.backbones import load_parts
from graftlm.errors import CheckpointError
from graftlm.storage import copy_into, read_tensors
from graftlm.systems.base import System, system_class

_TEXT = re.compile(r"text_hidden_fcs\.(\d+)\.0\.(weight|bias)")
_ROWS = ("ret_input_embeddings.weight", "input_embeddings.weight", "lm.model.decoder.embed_tokens.weight")
_BEHAVIOUR = ("bos_label", "second_bos", "no_eos", "halved", "local_gradient", "repeated_photos")
"""How the released weights were trained, in the words of `systems/fromage.py`."""


def read_released(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Tensors of a released file by name, in float32, without the prefixes of wrappers.

    Raises: CheckpointError when it cannot be read, or is a pickle that was not explicitly allowed.
    """
    if path.suffix == ".safetensors":
        found: Any = read_tensors(path)
    elif not allow_pickle:
        raise CheckpointError(
            f"{path}: expected safetensors, found '{path.suffix or 'no ending'}', perhaps a pickle that runs code; "
            "with --pickle only its tensors are read"
        )
    else:
        found = _unpickled(path)
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected tensors by name, found something else; give the released checkpoint")
    return {re.sub(r"^(module\.|model\.)+", "", name): tensor.float() for name, tensor in found.items()}


def import_fromage(
    released: Mapping[str, Tensor],
    *,
    lm: str,
    encoder: str,
    precision: str = "bfloat16",
    text_layers: tuple[int, ...] = (-1,),
) -> System:
    """The system `fromage` over the named frozen parts, with released weights.

    `text_layers`: the hidden layers that the released text maps read, in their order.
    Raises: CheckpointError when a tensor is missing or does not fit the frozen parts; BackboneError when a part is not
        to be found.
    """
    texts = sorted({int(match[1]) for name in released if (match := _TEXT.fullmatch(name))})
    if len(texts) not in (0, len(text_layers)):
        raise CheckpointError(
            f"released weights: {len(texts)} text maps do not fit the layers {text_layers}; name them"
        )
    wanted = ["visual_embeddings.weight", "visual_embeddings.bias", "visual_fc.weight", "visual_fc.bias", "logit_scale"]
    missing = [name for name in wanted if name not in released] + ([] if texts else ["text_hidden_fcs.0.0.weight"])
    row = next((released[name][-1] for name in _ROWS if name in released), None)
    if missing or row is None:
        name = missing[0] if missing else _ROWS[0]
        raise CheckpointError(f"released weights: expected a tensor '{name}', found none; is it a FROMAGe checkpoint?")
    num_tokens, rest = divmod(released["visual_embeddings.weight"].shape[0], len(row))
    if rest or not num_tokens:
        raise CheckpointError(f"released weights: visual_embeddings do not fit a [RET] row of width {len(row)}")
    cls = system_class("fromage")
    config = cls.Config.model_validate(
        {
            "lm": lm,
            "encoder": encoder,
            "precision": precision,
            "num_tokens": num_tokens,
            "shared_dim": released["visual_fc.weight"].shape[0],
            "text_layers": text_layers,
            "compat": _BEHAVIOUR,
        }
    )
    system = cls.build(config, load_parts(config))
    copy_into(system.trainable_state(), _renamed(released, texts, row), "released weights")
    return system.eval()


def _renamed(released: Mapping[str, Tensor], texts: list[int], row: Tensor) -> dict[str, Tensor]:
    """The same tensors under our names; the layers' maps, whose results are summed, stand side by side."""
    return {
        "connector.projection.weight": released["visual_embeddings.weight"],
        "connector.projection.bias": released["visual_embeddings.bias"],
        "image_head.project.weight": released["visual_fc.weight"],
        "image_head.project.bias": released["visual_fc.bias"],
        "text_head.project.weight": torch.cat([released[f"text_hidden_fcs.{at}.0.weight"] for at in texts], dim=1),
        "text_head.project.bias": torch.stack([released[f"text_hidden_fcs.{at}.0.bias"] for at in texts]).sum(0),
        "log_scale": released["logit_scale"].reshape(()),
        "lm.tokens.input_vectors.0": row,
    }


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file; check the path") from None
    except Exception as error:  # noqa: BLE001 (an unpickler raises whatever the bytes make it)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: expected a checkpoint of tensors alone ({reason}); fetch it again") from None
