"""Grafts: the few million trained parameters that are shared, with everything needed to use them.

A graft is a folder of graft.json (system, config, frozen parts with their fingerprints, tensor list), graft.safetensors
and README.md (the model card). It holds no code, no pickle and no frozen weight. Folders beside this file are the
ready-made ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import BackboneError, CheckpointError, ConfigError
from graftlm.grafts.allowance import allowing
from graftlm.grafts.card import card_text
from graftlm.storage import (
    copy_into,
    newest_step,
    read_json,
    read_tensors,
    refuse_pickle,
    replace_file,
    sha256,
    step_folder,
    tensor_bytes,
    verify,
)
from graftlm.systems.base import PartsConfig, System, system_class

FORMAT = 1
DESCRIPTION, TENSORS, CARD = "graft.json", "graft.safetensors", "README.md"
_LARGEST_DESCRIPTION = 16 << 20
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def ready_made() -> dict[str, Path]:
    """Grafts that came with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(Path(__file__).parent.glob(f"*/{DESCRIPTION}"))}


def save(
    system: System,
    folder: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes a graft into `folder`, whose other files are left alone.

    `training`: a summary for graft.json and the card; `card`: further keys of the card's header ("metrics",
    "datasets" ...); `dtype`: how the tensors are stored, float32, float16 or bfloat16.
    Raises: CheckpointError when a value does not fit into `dtype` or the folder cannot be written.
    """
    folder = Path(folder)
    stored = _stored(system.trainable_state(), dtype)
    data = tensor_bytes(stored)
    replace_file(folder / TENSORS, data)
    description = _describe(system, stored, sha256(folder / TENSORS), dict(training or {}))
    replace_file(folder / CARD, card_text(folder.name, description, dict(card or {})).encode())
    # Last, so that a graft.json never speaks of tensors that are not there.
    _write_description(folder, description)
    return folder


def load(source: str | Path) -> System:
    """A trained system by ready-made name, graft folder, run folder or hub id, ready to respond.

    Raises: CheckpointError when it is broken, hostile or belongs to other frozen parts; BackboneError when a frozen
        part is not to be found.
    """
    from graftlm.backbones import load_parts

    folder = locate(source)
    if not (folder / DESCRIPTION).is_file() and (folder / "checkpoints").is_dir():
        return _load_unfinished(folder)
    description = read_description(folder)
    cls, config = _config_of(description, folder / DESCRIPTION)
    tensors = _checked_tensors(folder, description)
    parts = load_parts(config)
    with allowing(tensors, folder / DESCRIPTION):
        system = cls.build(config, parts)
    _check_parts(system, description["frozen_parts"], folder / DESCRIPTION)
    system.make_room(tensors)
    copy_into(system.trainable_state(), tensors, str(folder / TENSORS))
    return system.eval()


def tensors_of(source: str | Path) -> dict[str, Tensor]:
    """The trained tensors of a graft alone, in float32. Raises: CheckpointError when it is broken or none."""
    folder = locate(source)
    return _checked_tensors(folder, read_description(folder))


def copy_from(source: str | Path, system: System) -> None:
    """Gives a system the trained weights of a graft of the same system and shapes, where a next stage begins.

    Raises: CheckpointError when it is broken, of another system or shape, or belongs to other frozen parts.
    """
    folder = _finished(source)
    description = read_description(folder)
    if description["system"] != system.name:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected a graft of '{system.name}', found one of '{description['system']}'; "
            "a stage goes on with its own system"
        )
    _check_parts(system, description["frozen_parts"], folder / DESCRIPTION)
    tensors = _checked_tensors(folder, description)
    system.make_room(tensors)
    copy_into(system.trainable_state(), tensors, str(folder / TENSORS))
    system.begun = True


def training_of(source: str | Path) -> dict[str, Any]:
    """What a graft's own training was. Raises: CheckpointError."""
    return dict(read_description(_finished(source)).get("training") or {})


def is_graft(source: str | Path) -> bool:
    """Whether it is a ready-made name, or a folder with a graft or a run in it; nothing is fetched."""
    return str(source) in ready_made() or _within(Path(source)) is not None


def read_description(folder: Path) -> dict[str, Any]:
    """graft.json, its keys and their types checked. Raises: CheckpointError."""
    path = folder / DESCRIPTION
    if path.is_file() and path.stat().st_size > _LARGEST_DESCRIPTION:
        raise CheckpointError(f"{path}: expected a few kB, found {path.stat().st_size:,} bytes; fetch the graft again")
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, found {description.get('format')}; update graftlm")
    kinds: dict[str, type] = {"system": str, "config": dict, "frozen_parts": dict, "tensors": dict, "sha256": str}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{path}: expected '{key}' to be of type {kind.__name__}; fetch the graft again")
    return description


def locate(source: str | Path) -> Path:
    """The folder of a graft; a hub id is fetched (safetensors, JSON and the card only). Raises: CheckpointError."""
    name = str(source)
    if name in ready_made():
        return ready_made()[name]
    if not name.strip():  # it would be the current folder
        raise CheckpointError("expected the name or the folder of a graft, found an empty one")
    path = Path(source)
    if path.is_dir():
        return _inside(path)
    refuse_pickle(path)
    if path.is_file():
        raise CheckpointError(f"{path}: expected the folder of a graft, found a file; give the folder it lies in")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.suffix:
        return _fetch(name)
    there = ", ".join(ready_made()) or "none yet"
    raise CheckpointError(
        f"{name}: expected a graft's folder, a run, a hub id (owner/name) or a ready-made graft ({there}), found none"
    )


def _within(path: Path) -> Path | None:
    """Where a folder holds a graft, or the folder itself where it is a run without one."""
    for folder in (path, path / "graft"):
        if (folder / DESCRIPTION).is_file():
            return folder
    return path if (path / "checkpoints").is_dir() else None


def _inside(path: Path) -> Path:
    found = _within(path)
    if found is not None:
        return found
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise CheckpointError(
        f"{path}: expected {DESCRIPTION} or a run's checkpoints, found neither; give a graft's folder"
    )


def _finished(source: str | Path) -> Path:
    folder = locate(source)
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder}: expected a graft, found a run that has exported none; finish it first")
    return folder


def _fetch(name: str) -> Path:
    from graftlm.backbones import fetch

    try:
        return fetch(name, [DESCRIPTION, TENSORS, CARD])
    except BackboneError as error:
        there = ", ".join(ready_made()) or "none yet"
        raise CheckpointError(
            f"{name}: not a local folder, and it cannot be fetched from the hub ({error}); "
            f"ready-made grafts are: {there}"
        ) from None


def _load_unfinished(run: Path) -> System:
    """The best checkpoint of a run that has exported no graft yet."""
    from graftlm.backbones import load_parts
    from graftlm.config import load_recipe

    newest, _ = newest_step(run / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{run}: expected a whole checkpoint, found none; train it first")
    progress = read_json(newest / "state.json").get("progress")
    best = progress.get("best") if isinstance(progress, dict) else None
    step = best.get("step") if isinstance(best, dict) else None
    folder = step_folder(newest.parent, step) if isinstance(step, int) else newest
    verify(folder)
    recipe = load_recipe(run / "recipe.yaml", system_fields=lambda name: system_class(name).Config)
    cls = system_class(recipe.system.name)
    config = cls.Config.model_validate(recipe.system.options())
    system = cls.build(config, load_parts(config))
    parts = read_json(folder / "state.json").get("frozen_parts")
    _check_parts(system, parts if isinstance(parts, dict) else {}, folder / "state.json")
    path = folder / "trainable.safetensors"
    tensors = read_tensors(path)
    system.make_room(tensors)
    copy_into(system.trainable_state(), tensors, str(path))
    return system.eval()


def _config_of(description: Mapping[str, Any], path: Path) -> tuple[type[System], PartsConfig]:
    try:
        cls = system_class(description["system"])
        return cls, cls.Config.model_validate(description["config"])
    except (ConfigError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: its system or config is unknown to this graftlm ({reason}); update") from None


def _check_parts(system: System, parts: Mapping[str, Any], path: Path) -> None:
    """Raises: CheckpointError when a frozen part is not the one the graft was trained over."""
    for role, found in system.fingerprints().items():
        part = parts.get(role)
        expected = part.get("fingerprint") if isinstance(part, dict) else None
        if expected != found:
            name = part.get("name") if isinstance(part, dict) else None
            raise CheckpointError(
                f"{path}: frozen part '{role}' ({name}): expected {str(expected)[:16]}, found {found[:16]}; "
                "a graft works over its own frozen parts only: use the same model, revision and precision"
            )


def _checked_tensors(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / TENSORS
    tensors = read_tensors(path)
    if sha256(path) != description["sha256"]:
        raise CheckpointError(f"{path}: its bytes are not those that {DESCRIPTION} names; fetch the graft again")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _stored(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype of a graft: expected one of {', '.join(_DTYPES)}, found '{dtype}'")
    stored = {
        name: tensor.to(_DTYPES[dtype]) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor '{name}' holds values that do not fit into {dtype}; store it as float32")
    return stored


def _describe(system: System, stored: Mapping[str, Tensor], digest: str, training: dict[str, Any]) -> dict[str, Any]:
    config = system.config.model_dump(mode="json")
    names = {role: config.get("lm") if role == "lm" else _encoder_name(role, config) for role in system.fingerprints()}
    return {
        "format": FORMAT,
        "system": system.name,
        "config": config,
        "frozen_parts": {
            role: {"name": names[role], "fingerprint": fingerprint}
            for role, fingerprint in system.fingerprints().items()
        },
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in stored.items()
        },
        "parameters": sum(tensor.numel() for tensor in stored.values()),
        "sha256": digest,
        "training": training,
    }


def _encoder_name(role: str, config: Mapping[str, Any]) -> Any:
    """The name of the encoder behind "encoders.text": the config's `text_encoder`, else its `encoder`."""
    return config.get(f"{role.partition('.')[2]}_encoder", config["encoder"])


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    import json

    replace_file(folder / DESCRIPTION, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())


__all__ = [
    "BackboneError",
    "copy_from",
    "load",
    "locate",
    "read_description",
    "ready_made",
    "save",
    "tensors_of",
    "training_of",
]
