"""A bad row costs one line of the ledger; a bad file is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.readers import read_all
from graftlm.errors import DataError
from tests.data.readers import files

GOOD = {"image": "good.jpg", "captions": ["good"]}

ROWS: dict[str, tuple[Any, str]] = {
    "no picture named": ({"captions": ["x"]}, "missing-column"),
    "no caption": ({"image": "a.jpg"}, "missing-column"),
    "a null caption": ({"image": "a.jpg", "captions": None}, "missing-column"),
    "a picture that is not there": ({"image": "gone.jpg", "captions": ["x"]}, "missing-file"),
    "a picture with a null byte": ({"image": "a\0.jpg", "captions": ["x"]}, "missing-file"),
    "a web address": ({"image": "https://example.org/a.jpg", "captions": ["x"]}, "remote-file"),
    "a number for a picture": ({"image": 3, "captions": ["x"]}, "wrong-type"),
    "an empty name": ({"image": "", "captions": ["x"]}, "missing-column"),
    "a number for a caption": ({"image": "a.jpg", "caption": 3}, "wrong-type"),
    "a mapping for captions": ({"image": "a.jpg", "captions": {"en": "x"}}, "wrong-type"),
    "an empty caption": ({"image": "a.jpg", "caption": " \t"}, "empty-caption"),
    "an empty list": ({"image": "a.jpg", "captions": []}, "empty-caption"),
    "a null among no others": ({"image": "a.jpg", "captions": [None]}, "wrong-type"),
    "a caption of a book": ({"image": "a.jpg", "caption": "x" * 3000}, "caption-too-long"),
    "the same row again": (GOOD, "duplicate-id"),
    "half a line": ('{"image": "a.jpg", "capt', "bad-json"),
    "a list": (["a.jpg", "x"], "wrong-type"),
    "nested beyond reason": ("[" * 100_000, "bad-json"),
}

QUESTIONS: dict[str, tuple[Any, str]] = {
    "no question": ({"image": "a.jpg", "answer": "x"}, "missing-column"),
    "an empty question": ({"image": "a.jpg", "question": " ", "answer": "x"}, "empty-caption"),
    "no answer": ({"image": "a.jpg", "question": "q"}, "missing-column"),
    "an empty answer": ({"image": "a.jpg", "question": "q", "answer": ""}, "empty-caption"),
    "a number for an answer": ({"image": "a.jpg", "question": "q", "answer": 3}, "wrong-type"),
    "an answer not to choose": (
        {"image": "a.jpg", "question": "q", "answer": "x", "choices": ["y", "z"]},
        "answer-not-in-choices",
    ),
    "choices that are no list": ({"image": "a.jpg", "question": "q", "answer": "x", "choices": "x"}, "wrong-type"),
    "an id twice": ({"image": "a.jpg", "question": "q", "answer": "x", "question_id": 1}, "duplicate-id"),
}

HUMAN, GPT = {"from": "human", "value": "<image> hi"}, {"from": "gpt", "value": "hello"}
DIALOGUES: dict[str, tuple[Any, str]] = {
    "no turns": ({"image": "a.jpg"}, "missing-column"),
    "turns that are no list": ({"image": "a.jpg", "conversations": "hi"}, "wrong-type"),
    "nobody answers": ({"image": "a.jpg", "conversations": [HUMAN]}, "missing-target"),
    "an empty answer": ({"image": "a.jpg", "conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "empty-caption"),
    "more marks than pictures": ({"image": "a.jpg", "conversations": [HUMAN, GPT, HUMAN, GPT]}, "media-count"),
    "more pictures than marks": ({"image": ["a.jpg", "a.jpg"], "conversations": [HUMAN, GPT]}, "media-count"),
    "an unknown speaker": ({"conversations": [{"from": "dog", "value": "wow"}, GPT]}, "wrong-type"),
    "a number said": ({"conversations": [{"from": "human", "value": 3}, GPT]}, "wrong-type"),
    "a picture part without a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]},
        "media-count",
    ),
    "an unknown part": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}, {"role": "assistant", "content": "x"}]},
        "wrong-type",
    ),
}


def one_bad_row(folder: Path, name: str, good: Any, bad: Any, reason: str) -> None:
    """Writes a good, the bad and another line; the bad one is written down with its line, the good one is read."""
    files.photos(folder, ["good.jpg", "a.jpg"])
    file = files.jsonl(folder / name, [good, bad])
    ledger = Ledger(folder / "bad_samples.jsonl")
    assert len(read_all({"path": str(file)}, ledger)) == 1
    assert ledger.reasons == {reason: 1}
    (line,) = (folder / "bad_samples.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert (written["reason"], written["file"], written["row"]) == (reason, str(file), 2)
    assert len(written["message"]) > 15
    assert ledger.rows == 2


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_caption_row_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    one_bad_row(tmp_path, "captions.jsonl", GOOD, *ROWS[case])


@pytest.mark.parametrize("case", QUESTIONS)
def test_a_bad_question_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    good = {"image": "good.jpg", "question": "q", "answer": "a", "question_id": 1}
    one_bad_row(tmp_path, "qa.jsonl", good, *QUESTIONS[case])


@pytest.mark.parametrize("case", DIALOGUES)
def test_a_bad_dialogue_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    good = {"image": "good.jpg", "conversations": [HUMAN, GPT]}
    one_bad_row(tmp_path, "chat.jsonl", good, *DIALOGUES[case])


def test_a_line_that_is_not_utf8_is_left_out_and_a_bom_is_not(tmp_path: Path) -> None:
    files.photos(tmp_path, ["good.jpg"])
    (tmp_path / "c.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\r\n{"image": "\xff\xfe"}\r\n\r\n'
    )
    ledger = Ledger()
    assert len(read_all({"path": str(tmp_path / "c.jsonl")}, ledger)) == 1
    assert ledger.reasons == {"bad-encoding": 1}


def test_one_bad_caption_of_five_does_not_cost_the_photo(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    file = files.jsonl(tmp_path / "c.jsonl", [{"image": "a.jpg", "captions": ["one", "", 3, "two"]}])
    ledger = Ledger()
    assert [sample.key for sample in read_all({"path": str(file)}, ledger)] == ["a.jpg#0", "a.jpg#1"]
    assert ledger.reasons == {"empty-caption": 1, "wrong-type": 1}


def test_bad_rows_of_coco_are_named_by_their_place(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "1.jpg"},
        {"id": 1, "file_name": "2.jpg"},
        {"id": 2},
        {"file_name": "3.jpg"},
        {"id": 3, "file_name": "3.jpg"},
        {"id": 4, "file_name": "gone.jpg"},
        "four",
    ]
    annotations = [
        {"id": 1, "image_id": 1, "caption": "one"},
        {"id": 1, "image_id": 1, "caption": "id again"},
        {"id": 2, "image_id": 1, "caption": " "},
        {"id": 3, "image_id": 77, "caption": "of no image"},
        {"id": 4, "image_id": 2, "caption": "two"},
        {"id": 5, "image_id": 4, "caption": "gone"},
        {"id": 6, "image_id": [1], "caption": "odd"},
    ]
    ledger = Ledger()
    found = read_all({"path": str(files.coco(tmp_path, images, annotations))}, ledger)
    assert [sample.references for sample in found] == [("one",)]
    assert {(entry.row, entry.reason) for entry in ledger.entries} == {
        ("annotations[1]", "duplicate-id"),
        ("annotations[2]", "empty-caption"),
        ("annotations[6]", "wrong-type"),
        ("images[1]", "duplicate-id"),
        ("images[2]", "missing-column"),
        ("images[3]", "missing-column"),
        ("images[4]", "empty-caption"),
        ("images[5]", "missing-file"),
        ("images[6]", "wrong-type"),
        ("77", "unknown-image"),
    }


def test_bad_members_of_a_tar_are_left_out(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "1.jpg": files.jpeg(1),
        "1.txt": "one",
        "2.txt": "no picture",
        "3.jpg": files.jpeg(3),
        "4.jpg": files.jpeg(4),
        "4.json": "{no json",
        "5.jpg": files.jpeg(5),
        "5.txt": b"\xff\xfe\xfa",
        "1.png": files.jpeg(6),
        "6.jpg": files.jpeg(7),
        "6.txt": "cut off in the end",
    }
    path = files.tar(tmp_path / "a.tar", members)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"cut off in the end") + 5])
    ledger = Ledger()
    found = read_all({"path": str(path)}, ledger)
    assert [sample.key for sample in found] == ["1#0"]
    reasons = {"missing-column": 2, "bad-json": 1, "bad-encoding": 1, "duplicate-id": 1, "truncated-archive": 1}
    assert ledger.reasons == reasons


def test_a_tsv_row_of_three_columns_is_left_out(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    (tmp_path / "t.tsv").write_text("one\ta.jpg\ntwo\ta.jpg\tmore\nthree\thttp://example.org/b.jpg\n")
    ledger = Ledger()
    assert len(read_all({"path": str(tmp_path)}, ledger)) == 1
    assert ledger.reasons == {"missing-column": 1, "remote-file": 1}


def write(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data) and None


@pytest.mark.parametrize(
    ("reader", "name", "make", "words"),
    [
        ("jsonl", "a.jsonl", write(""), "expected rows, found none"),
        ("jsonl", "a.jsonl", write("no json\nnor here\n"), "2 bad-json"),
        ("jsonl", "a.json", write('{"image": "a.jpg"}'), "expected a list of rows"),
        ("coco", "a.json", write("[1, 2"), "expected JSON"),
        ("coco", "a.json", write(b"\xff\xfe\x00"), "expected JSON"),
        ("coco", "a.json", write("[]"), "expected a list 'images'"),
        ("karpathy", "a.json", write('{"images": []}'), "expected rows, found none"),
        (
            "vqa",
            "a.json",
            write('{"questions": [], "x": {"question_id": 1, "image_id": 2}}'),
            "give its path as 'annotations'",
        ),
        ("webdataset", "a.tar", write("no tar at all, but long enough to look at" * 30), "expected a tar"),
        ("parquet", "a.parquet", write("PAR1 not really"), "expected a parquet file"),
        ("folder", "metadata.csv", write("file_name,text\n"), "expected rows, found none"),
        ("cc3m", "a.tsv", write("only one column\n"), "1 missing-column"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, reader: str, name: str, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_all({"path": str(tmp_path / name), "reader": reader})
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_answered_with_those_there_are(tmp_path: Path) -> None:
    folder = files.captioned(tmp_path)
    with pytest.raises(DataError, match="split 'tets', found test, train, val"):
        read_all({"path": str(folder), "split": "tets"})
    assert len(read_all({"path": str(folder), "split": "validation"})) == 1


def test_the_budget_stops_the_reading(tmp_path: Path) -> None:
    files.photos(tmp_path, ["good.jpg"])
    file = files.jsonl(tmp_path / "c.jsonl", [GOOD, *({"image": f"{n}.jpg", "captions": ["x"]} for n in range(50))])
    with pytest.raises(DataError, match="at most 3 bad rows, found 4"):
        read_all({"path": str(file)}, Ledger(None, budget=3))
    with pytest.raises(DataError, match=r"at most 50.00% of the rows bad rows, found 50"):
        read_all({"path": str(file)}, Ledger(None, budget=0.5))
    assert len(read_all({"path": str(file)}, Ledger(None, budget=50))) == 1
