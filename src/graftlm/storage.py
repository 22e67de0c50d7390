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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from graftlm.errors import CheckpointError

MANIFEST = "MANIFEST.json"
TEMPORARY = ".tmp_"
_ASIDE = f"{TEMPORARY}old_"
_STEP = "step_"
_PICKLE_HEADS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target`, with a manifest, when the block ends without an error.

    A folder that is there already stays whole until the new one is.
    Raises: CheckpointError when the disk does not take it; nothing half-written is left.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}_{os.getpid()}"
    with _writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        with _writable(target, inside=temporary):
            yield temporary
        with _writable(target):
            write_json(temporary / MANIFEST, _manifest(temporary))
            _sync(temporary)
            _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raises: CheckpointError when a file is missing, cut or altered, or the manifest names none."""
    manifest = read_json(folder / MANIFEST)
    if not manifest:
        raise CheckpointError(f"{folder / MANIFEST}: expected the files of this folder, found none; use another one")
    for name, expected in manifest.items():
        path = folder / name
        if not isinstance(expected, dict) or Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST}: not a manifest of this folder; use another checkpoint")
        with _readable(path):
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
    with _readable(path):
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
    """Checkpoint folders in the order of their steps; one that a kill left set aside is put back first."""
    bring_back(folder)
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
    """Writes a file under a temporary name, flushes it and renames it. Raises: CheckpointError."""
    temporary = path.parent / f"{TEMPORARY}{path.name}_{os.getpid()}"
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, data)
            temporary.replace(path)
        finally:
            if temporary.exists():
                temporary.unlink()


def bring_back(folder: Path) -> None:
    """Gives a folder that was set aside its name again, where a kill came before its successor had it."""
    for old in folder.glob(f"{_ASIDE}*"):
        target = folder / old.name.removeprefix(_ASIDE)
        if not target.exists():
            with suppress(OSError):  # a read-only disk, or its writer was quicker
                old.rename(target)


def step_folder(folder: Path, step: int) -> Path:
    """The checkpoint folder of a step: "step_000500"."""
    return folder / f"{_STEP}{step:06d}"


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises: CheckpointError."""
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}


def _read(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None


def _write(path: Path, data: bytes) -> None:
    with _writable(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _writable(target: Path, inside: Path | None = None) -> Iterator[None]:
    """What the disk refuses is told in a sentence; with `inside`, only what concerns that folder."""
    try:
        yield
    except OSError as error:
        named = str(error.filename or inside)
        if error.errno is None or (inside is not None and not named.startswith(str(inside))):
            raise
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror}); free some space, see to the permissions or choose "
            "another folder"
        ) from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, target: Path) -> None:
    """Sets the old folder aside under a name that `bring_back` knows: a kill at any point loses neither."""
    aside = target.parent / f"{_ASIDE}{target.name}"
    while True:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        try:
            temporary.rename(target)
            break
        except OSError:
            if not target.exists():  # else a reader has brought the old one back in between
                raise
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
