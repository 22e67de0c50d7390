"""Files that are complete or not there, and tensors that are safe to read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftlm.errors import CheckpointError
from graftlm.storage import (
    MANIFEST,
    atomic_folder,
    copy_into,
    newest_step,
    read_json,
    read_tensors,
    replace_file,
    sha256,
    step_folder,
    step_folders,
    tensor_bytes,
    verify,
    write_json,
    write_tensors,
)

GOOD = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def header(entries: dict[str, object], body: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"",
    "cut in its header": tensor_bytes(GOOD)[:20],
    "cut in its data": tensor_bytes(GOOD)[:-1],
    "longer than it says": tensor_bytes(GOOD) + b"\0",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "overlapping tensors": header({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}),
    "offsets beyond the end": header({"a": entry(0, 80, [20])}),
    "a shape that is not its data": header({"a": entry(0, 8, [3])}),
    "an enormous shape": header({"a": entry(0, 8, [2**62, 2**62])}),
    "an unknown type": header({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_broken_or_hostile_file_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "graft.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(path)


def test_tensors_come_back_and_equal_tensors_make_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, GOOD)
    found = read_tensors(path)
    assert all(torch.equal(found[name], GOOD[name]) and found[name].dtype == GOOD[name].dtype for name in GOOD)
    assert tensor_bytes(GOOD) == tensor_bytes(dict(reversed(GOOD.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes({"w": torch.tensor([1.0, value])}))
    with pytest.raises(CheckpointError, match="tensor 'w' holds NaN or infinity"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.ckpt", "w.safetensors"])
def test_a_pickle_is_refused_by_name_and_by_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="expected safetensors, found a pickle"):
        read_tensors(path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step_000001"

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text(text)
            assert not (target / MANIFEST).exists() or text == "2"
        verify(target)
    assert (target / "a").read_text() == "2"
    assert list(tmp_path.iterdir()) == [target]


def test_the_newest_whole_step_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000):
        with atomic_folder(step_folder(tmp_path, step)) as temporary:
            write_json(temporary / "state.json", {"step": step})
    assert newest_step(tmp_path) == (tmp_path / "step_1000000", [])
    (tmp_path / "step_1000000" / MANIFEST).unlink()
    (tmp_path / "step_000010" / "state.json").write_text('{\n "step": 11\n}\n')
    found, damaged = newest_step(tmp_path)
    assert found == tmp_path / "step_000009"
    assert [("cannot be read" in line, "does not match" in line) for line in damaged] == [(True, False), (False, True)]


def test_json_and_files_are_refused_and_replaced_in_words(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    replace_file(path, b"[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        read_json(path)
    replace_file(path, b"{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_json(path)
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_tensors_are_copied_only_where_names_and_shapes_fit_exactly() -> None:
    own = {"w": torch.zeros(2), "b": torch.zeros(1)}
    for given, sentence in [
        ({"w": torch.ones(2)}, "1 missing, 0 unknown; missing 'b'"),
        ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "unknown 'c'"),
        ({"w": torch.ones(3), "b": torch.ones(1)}, r"tensor 'w': expected shape \[2\], found \[3\]"),
    ]:
        with pytest.raises(CheckpointError, match=sentence):
            copy_into(own, given, "here")
    assert float(own["w"].sum()) == 0
    copy_into(own, {"w": torch.ones(2), "b": torch.ones(1)}, "here")
    assert float(own["w"].sum()) == 2


def test_eight_bit_floats_are_read_or_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensor_bytes({"a": torch.full((2,), float("nan")).to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="NaN"):
        read_tensors(path)


class KilledError(BaseException):
    """Stands for kill -9."""


def save_again(folder: Path, text: str) -> None:
    with atomic_folder(step_folder(folder, 5)) as temporary:
        write_json(temporary / "state.json", {"text": text})


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_renames_loses_no_step_that_is_saved_again(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_again(tmp_path, "first")
    left, rename = [renames], Path.rename

    def dying(path: Path, target: Path) -> Path:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the dead clean nothing up
        with pytest.raises(KilledError):
            save_again(tmp_path, "second")
    found, damaged = newest_step(tmp_path)
    assert found == step_folder(tmp_path, 5)
    assert damaged == []
    assert read_json(found / "state.json") == {"text": "first"}
    save_again(tmp_path, "third")
    assert read_json(step_folder(tmp_path, 5) / "state.json") == {"text": "third"}
    assert [path.name for path in tmp_path.iterdir() if "old" in path.name] == []


def test_a_reader_that_puts_a_step_back_does_not_stop_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_again(tmp_path, "first")
    rename, meddled = Path.rename, []

    def watched(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if "old" in target.name and not meddled:
            meddled.append(step_folders(tmp_path))  # between the writer's two renames
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        save_again(tmp_path, "second")
    assert meddled == [[step_folder(tmp_path, 5)]]
    assert read_json(step_folder(tmp_path, 5) / "state.json") == {"text": "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


@pytest.mark.parametrize("manifest", ["{}", "[]", "null"])
def test_an_empty_manifest_vouches_for_nothing(manifest: str, tmp_path: Path) -> None:
    save_again(tmp_path, "x")
    (step_folder(tmp_path, 5) / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: expected"):
        verify(step_folder(tmp_path, 5))
    assert newest_step(tmp_path)[0] is None


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", full)


WRITES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda folder: save_again(folder, "x"),
    "a file": lambda folder: replace_file(folder / "deep" / "x.json", b"{}"),
    "JSON": lambda folder: write_json(folder / "x.json", {}),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); free some space"):
            WRITES[kind](tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "x.json"] == []
    assert kind == "JSON" or not (tmp_path / "deep" / "x.json").exists()


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_in_the_place_of_a_folder_is_told_in_a_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written .* choose another folder"):
        WRITES[kind](tmp_path / "file")


def test_a_disk_that_fills_up_while_the_caller_writes_is_told_too(tmp_path: Path) -> None:
    def write(error: OSError) -> None:
        with atomic_folder(tmp_path / "model"):
            raise error

    with pytest.raises(CheckpointError, match="No space left"):
        write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FileNotFoundError):  # of a file elsewhere: not the disk's fault
        write(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/somewhere/else"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    for ask in (sha256, read_tensors, read_json):
        with pytest.raises(CheckpointError, match="cannot be read"):
            ask(tmp_path)
