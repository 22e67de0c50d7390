"""Tiny data sets of every format, written where a test asks for them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.pictures import picture


def jpeg(seed: int) -> bytes:
    """The bytes of a small JPEG."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="JPEG")
    return buffer.getvalue()


def photos(folder: Path, names: Sequence[str]) -> None:
    """A small photo for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(seed))


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """One JSON value per line; a string is written as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """A tar of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captioned(folder: Path) -> Path:
    """Four photos in two splits; the first has two captions."""
    photos(folder / "images", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    rows = [
        {"image": "a.jpg", "split": "train", "captions": ["a dog .", "the dog runs ."]},
        {"image": "b.jpg", "split": "train", "captions": ["a cat ."]},
        {"image": "c.jpg", "split": "val", "captions": ["a bird ."]},
        {"image": "d.jpg", "split": "test", "captions": ["a fish , swimming ."]},
    ]
    jsonl(folder / "captions.jsonl", rows)
    return folder


def coco(folder: Path, images: Sequence[Any], annotations: Sequence[Any]) -> Path:
    """COCO's folders: annotations/captions_val2014.json and val2014/."""
    photos(folder / "val2014", [f"{number}.jpg" for number in (1, 2, 3)])
    file = folder / "annotations" / "captions_val2014.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"info": {}, "images": images, "licenses": [], "annotations": annotations}))
    return file


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], group: int = 2) -> Path:
    """A parquet file with row groups of `group` rows."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


FIXTURES = Path(__file__).parents[2] / "fixtures"


def vist(folder: Path) -> Path:
    """VIST's stories in the official layout, with all photos but one."""
    names = [f"{album}0{number}.jpg" for album in (1, 2, 3, 4) for number in (1, 2, 3, 4, 5)]
    photos(folder / "images", [name for name in names if name != "303.jpg"])
    shutil.copy(FIXTURES / "vist" / "val.story-in-sequence.json", folder)
    return folder


def open_ended(folder: Path) -> Path:
    """Open-Ended miniImageNet's json with its pictures."""
    photos(folder / "images", ["n01/a.jpg", "n02/b.jpg", "n02/c.jpg", "n01/d.jpg"])
    for file in (FIXTURES / "open_ended").iterdir():
        shutil.copy(file, folder)
    return folder


def visdial(folder: Path) -> Path:
    """VisDial's dialogues and dense annotations in the official layout, with their photos."""
    photos(folder / "images", [f"VisualDialog_val2018_{number:012d}.jpg" for number in (185565, 284024, 574189)])
    for file in (FIXTURES / "visdial").iterdir():
        shutil.copy(file, folder)
    return folder
