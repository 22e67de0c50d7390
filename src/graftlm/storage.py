"""Folders and files that are complete or not there: temporary name, fsync, manifest last, rename.

safetensors and JSON only. `MANIFEST.json` holds size and SHA-256 of every other file of its folder, so that a folder
with a fitting manifest is whole, whenever the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from graftlm.errors import CheckpointError

MANIFEST = "MANIFEST.json"
TEMPORARY = ".tmp_"
_STEP = "step_"
_PICKLE_HEADS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target`, with a manifest, when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY}{target.name}_{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        write_json(temporary / MANIFEST, _manifest(temporary))
        _sync(temporary)
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raises: CheckpointError when a file is missing, cut or altered."""
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest.items():
        path = folder / name
        if not isinstance(expected, dict) or Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST}: not a manifest of this folder; use another checkpoint")
        size = path.stat().st_size if path.is_file() else None
        if size != expected.get("bytes"):
            raise CheckpointError(
                f"{path}: expected {expected.get('bytes')} bytes, found {size or 'none'}; use another checkpoint"
            )
        if sha256(path) != expected.get("sha256"):
            raise CheckpointError(f"{path}: its content does not match {MANIFEST}; use another checkpoint")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, flushed to the disk; the bytes depend on the tensors alone."""
    _write(path, tensor_bytes(tensors))


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file."""
    return save({name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file whose values are all finite.

    Raises: CheckpointError for a missing, cut or hostile file, a pickle, NaN or infinity.
    """
    refuse_pickle(path)
    data = _read(path)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{path}: tensor '{name}' holds NaN or infinity; it cannot be used")
    return tensors


def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies `tensors` into `own` in place. Raises: CheckpointError unless names and shapes fit exactly."""
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        example = f"missing '{missing[0]}'" if missing else f"unknown '{extra[0]}'"
        raise CheckpointError(
            f"{where}: expected {len(own)} tensors, found {len(tensors)} "
            f"({len(missing)} missing, {len(extra)} unknown; {example}); it belongs to another system or config"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: tensor '{name}': expected shape {list(own[name].shape)}, found {list(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def refuse_pickle(path: Path) -> None:
    """Raises: CheckpointError when a file is a pickle, by its name or by its first bytes."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    if path.suffix in _PICKLE_ENDINGS or head.startswith(_PICKLE_HEADS):
        raise CheckpointError(
            f"{path}: expected safetensors, found a pickle, which can run code when it is read; "
            "convert it with safetensors.torch.save_file first"
        )


def write_json(path: Path, value: Any) -> None:
    """JSON, flushed to the disk."""
    _write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: CheckpointError."""
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not valid JSON; fetch or write it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def step_folders(folder: Path) -> list[Path]:
    """Checkpoint folders in the order of their steps."""
    found = [path for path in folder.glob(f"{_STEP}*") if path.name.removeprefix(_STEP).isdigit()]
    return sorted(found, key=step_of)


def newest_step(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged."""
    damaged: list[str] = []
    for candidate in reversed(step_folders(folder)):
        try:
            verify(candidate)
            return candidate, damaged
        except CheckpointError as error:
            damaged.append(str(error))
    return None, damaged


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix(_STEP))


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, flushes it and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}_{os.getpid()}"
    try:
        _write(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def step_folder(folder: Path, step: int) -> Path:
    """The checkpoint folder of a step: "step_000500"."""
    return folder / f"{_STEP}{step:06d}"


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); free some space") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, target: Path) -> None:
    old = target.parent / f"{TEMPORARY}old_{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
