"""The reader is guessed from the path, and a spec is strict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.data.readers import detect, parse, read, reader_names
from graftlm.errors import ConfigError, DataError
from tests.data.readers import files


def test_every_format_is_recognised_by_its_files(tmp_path: Path) -> None:
    photo = {"image": "a.jpg"}
    files.captioned(tmp_path / "jsonl")
    files.photos(tmp_path / "folder", ["a.jpg"])
    files.photos(tmp_path / "folder2" / "train", ["a.jpg"])
    files.jsonl(tmp_path / "folder2" / "train" / "metadata.jsonl", [{"file_name": "a.jpg", "text": "x"}])
    files.coco(tmp_path / "coco", [{"id": 1, "file_name": "1.jpg"}], [{"id": 1, "image_id": 1, "caption": "x"}])
    (tmp_path / "karpathy").mkdir()
    images = [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}]}]
    (tmp_path / "karpathy" / "dataset.json").write_text(json.dumps({"images": images}))
    (tmp_path / "cc3m").mkdir()
    (tmp_path / "cc3m" / "t.tsv").write_text("x\ta.jpg\n")
    files.tar(tmp_path / "webdataset" / "0.tar", {"1.jpg": b"", "1.txt": "x"})
    files.parquet(tmp_path / "parquet" / "data" / "train.parquet", [{"image": b"", "text": "x"}])
    files.jsonl(tmp_path / "vqa" / "qa.jsonl", [{**photo, "question": "q", "answer": "a"}])
    files.open_ended(tmp_path / "open_ended")
    files.jsonl(tmp_path / "chat" / "chat.jsonl", [{**photo, "conversations": []}])
    files.jsonl(tmp_path / "chat2" / "chat.jsonl", [{**photo, "messages": []}])
    files.jsonl(tmp_path / "documents" / "d.jsonl", [{"parts": [photo, {"text": "x"}]}])
    files.jsonl(tmp_path / "documents2" / "d.jsonl", [{"texts": ["x", None], "images": [None, "a.jpg"]}])
    files.jsonl(tmp_path / "mmc4" / "docs_shard_0_v2.jsonl", [{"image_info": [], "text_list": ["x"]}])
    files.jsonl(tmp_path / "videos" / "v.jsonl", [{"video": "a.mp4", "captions": ["x"]}])
    for folder in sorted(tmp_path.iterdir()):
        assert detect(str(folder)) == folder.name.rstrip("2")


def test_one_file_is_recognised_as_its_folder_is(tmp_path: Path) -> None:
    assert detect(str(files.captioned(tmp_path) / "captions.jsonl")) == "jsonl"
    assert detect(str(tmp_path / "images" / "a.jpg")) == "folder"
    assert detect("owner-of/a-dataset.v2") == "hub"


def test_two_formats_in_one_folder_are_asked_about(tmp_path: Path) -> None:
    files.captioned(tmp_path)
    files.jsonl(tmp_path / "qa.jsonl", [{"image": "a.jpg", "question": "q", "answer": "a"}])
    with pytest.raises(ConfigError, match=r"jsonl, vqa.*'reader'"):
        detect(str(tmp_path))


def test_two_files_of_one_format_are_told_apart_by_the_split(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg", "b.jpg"])
    for split, name in (("train", "a"), ("test", "b")):
        files.jsonl(tmp_path / f"{split}.jsonl", [{"image": f"{name}.jpg", "text": name}])
    assert [sample.stem for sample in read({"path": str(tmp_path), "split": "test"})] == ["b.jpg"]
    with pytest.raises(DataError, match="found 2"):
        read({"path": str(tmp_path)})


def test_no_data_and_no_path_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data of a known format"):
        detect(str(tmp_path))
    with pytest.raises(DataError, match="check the path"):
        detect(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="'path'"):
        parse({})


def test_unknown_readers_and_keys_are_answered_with_the_nearest(tmp_path: Path) -> None:
    folder = str(files.captioned(tmp_path))
    with pytest.raises(ConfigError, match="unknown reader 'jsonlines'; did you mean 'jsonl'"):
        read({"path": folder, "reader": "jsonlines"})
    with pytest.raises(ConfigError, match="unknown key 'spilt'; did you mean 'split'"):
        read({"path": folder, "spilt": "train"})
    with pytest.raises(ConfigError, match="'limit'"):
        read({"path": folder, "limit": 0})
    with pytest.raises(ConfigError, match="'per'"):
        read({"path": folder, "per": "word"})


def test_every_reader_keeps_the_contract() -> None:
    import importlib

    for name in reader_names():
        module = importlib.import_module(f"graftlm.data.readers.{name}")
        fields = module.Spec.model_fields
        assert {"reader", "path", "split", "limit", "per"} <= set(fields)
        assert len(fields) <= 15
        assert all(field.description for field in fields.values())
        assert module.claims("/nowhere/at/all") is False


def test_a_wrong_picture_folder_is_named(tmp_path: Path) -> None:
    folder = str(files.captioned(tmp_path))
    with pytest.raises(DataError, match="check 'images'"):
        read({"path": folder, "images": str(tmp_path / "pictures")})
    assert len(list(read({"path": folder, "images": str(tmp_path / "images")}))) == 5
