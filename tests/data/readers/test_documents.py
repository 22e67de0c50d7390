"""Interleaved documents in the forms people have, and MMC4's."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.media import load_image
from graftlm.data.readers import read_all
from graftlm.data.readers.mmc4 import one_to_one
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text, Video
from graftlm.errors import DataError, MissingExtraError
from tests.data.readers import files


def shape(sample: Sample) -> list[str]:
    """Texts as they stand, a picture as the stem of its file or the number of its JPEG."""
    found = []
    for part in sample.sentence:
        if isinstance(part, Text):
            found.append(part.content)
        else:
            assert isinstance(part, Image | Video)
            source = part.source
            name = Path(source).stem if isinstance(source, str) else f"bytes {_number(source)}"
            found.append(f"<{name}>")
    return found


def _number(source: Any) -> int:
    pixels = load_image(source).tobytes()
    return next(number for number in range(20) if load_image(files.jpeg(number)).tobytes() == pixels)


def documents(folder: Path, rows: Sequence[Any]) -> dict[str, Any]:
    files.photos(folder / "images", ["a.jpg", "b.jpg", "c.jpg"])
    return {"path": str(files.jsonl(folder / "documents.jsonl", rows))}


FORMS: dict[str, Any] = {
    "wire format": {
        "document": [
            {"type": "text", "text": "head"},
            {"type": "image", "source": "a.jpg"},
            {"type": "text", "text": "one"},
            {"type": "image", "source": "b.jpg"},
            {"type": "text", "text": "two"},
        ]
    },
    "plain objects": {"parts": [{"text": "head"}, {"image": "a.jpg"}, {"text": "one"}, {"image": "b.jpg"}, "two"]},
    "parallel lists": {
        "texts": ["head", None, "one", None, "two"],
        "images": [None, "a.jpg", None, "b.jpg", None],
        "metadata": "[]",
    },
    "pairs": {"texts": ["head", "one", "two"], "images": [None, "a.jpg", "b.jpg"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_document_gives_the_same_sentence(tmp_path: Path, form: str) -> None:
    ledger = Ledger()
    (found,) = read_all(documents(tmp_path, [FORMS[form]]), ledger)
    assert shape(found) == ["head", "<a>", "one", "<b>", "two"]
    assert all(part.target for part in found.sentence if isinstance(part, Text))
    assert (found.key, ledger.entries) == ("documents:1", [])


def test_pictures_inside_a_row_and_films_are_parts_too(tmp_path: Path) -> None:
    files.photos(tmp_path / "clip", ["0.jpg"])
    inline = base64.b64encode(files.jpeg(7)).decode()
    parts = [{"type": "image", "base64": inline}, {"text": "one"}, {"video": "clip"}, {"text": "two"}]
    (found,) = read_all(documents(tmp_path, [{"id": "x", "content": parts}]))
    assert shape(found) == ["<bytes 7>", "one", "<clip>", "two"]
    assert found.sentence.parts[2] == Video(str(tmp_path / "clip"))
    assert found.key == "x"


def test_long_documents_are_cut_at_their_pictures(tmp_path: Path) -> None:
    parts = [{"text": "head"}, *({"image": name} for name in ("a.jpg",)), {"text": "one"}, {"text": "more"}]
    parts += [{"image": "b.jpg"}, {"text": "two"}, {"image": "c.jpg"}, {"text": "three"}]
    spec = documents(tmp_path, [{"id": "d", "parts": parts, "split": "train"}])
    found = read_all({**spec, "max_images": 2})
    assert [shape(sample) for sample in found] == [["head", "<a>", "one\nmore", "<b>", "two"], ["<c>", "three"]]
    assert [sample.key for sample in found] == ["d#0", "d#1"]
    assert found[1].metadata == {"id": "d", "split": "train"}
    short = read_all({**spec, "max_chars": 10, "between": " "})
    assert [shape(sample) for sample in short] == [["<a>", "one more"], ["<b>", "two", "<c>", "three"]]


def test_rows_that_name_their_targets_keep_them(tmp_path: Path) -> None:
    sentence = Sentence((Image("a.jpg"), Text("What? "), Text("A dog.", target=True)))
    dialogue = Sentence((Text("Look:", role="user"), Image("b.jpg", role="user"), Text("I see.", True, "assistant")))
    rows = [{"document": sentence.to_json()}, {"document": dialogue.to_json()}]
    first, second = read_all(documents(tmp_path, rows))
    place = str(tmp_path / "images")
    assert first.sentence.parts == (Image(f"{place}/a.jpg"), Text("What? "), Text("A dog.", target=True))
    assert second.sentence.parts[1:] == (Image(f"{place}/b.jpg", role="user"), Text("I see.", True, "assistant"))


def test_limit_counts_documents_and_splits_are_kept_apart(tmp_path: Path) -> None:
    rows = [
        {"parts": [{"image": "a.jpg"}, {"text": str(number)}], "split": "train" if number % 2 else "val"}
        for number in range(6)
    ]
    spec = documents(tmp_path, rows)
    assert [shape(sample)[1] for sample in read_all({**spec, "split": "train", "limit": 2})] == ["1", "3"]
    with pytest.raises(DataError, match="split 'test', found train, val"):
        read_all({**spec, "split": "test"})


A, GONE = {"image": "a.jpg"}, {"image": "gone.jpg"}
BAD: dict[str, tuple[Any, str]] = {
    "no parts": ({"id": 1}, "missing-column"),
    "parts that are no list": ({"parts": "a.jpg"}, "wrong-type"),
    "a number as a part": ({"parts": [A, 3]}, "wrong-type"),
    "a text that is no string": ({"parts": [A, {"text": 3}]}, "wrong-type"),
    "an unknown kind of part": ({"parts": [A, {"type": "smell", "text": "x"}]}, "wrong-type"),
    "an unknown role": ({"parts": [A, {"text": "x", "role": "dog"}]}, "wrong-type"),
    "no words": ({"parts": [A, {"text": " "}]}, "missing-target"),
    "words alone": ({"parts": [{"text": "x"}]}, "media-count"),
    "no picture that is there": ({"parts": [GONE, {"text": "x"}]}, "missing-file"),
    "a web address": ({"parts": [{"image": "https://example.org/a.jpg"}, {"text": "x"}]}, "remote-file"),
    "a picture without a name": ({"parts": [{"type": "image"}, {"text": "x"}]}, "missing-column"),
    "no base64": ({"parts": [{"type": "image", "base64": "?"}, {"text": "x"}]}, "wrong-type"),
    "lists of two lengths": ({"texts": ["x"], "images": ["a.jpg", None]}, "media-count"),
    "lists that are none": ({"texts": "x", "images": ["a.jpg"]}, "wrong-type"),
    "an id twice": ({"id": "good", "parts": [A, {"text": "x"}]}, "duplicate-id"),
    "a lost picture among targets": ({"parts": [A, GONE, {"text": "x", "target": True}]}, "missing-file"),
    "roles without a target": ({"parts": [A, {"text": "x", "role": "user"}]}, "missing-target"),
    "half a line": ('{"parts": [', "bad-json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_document_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    row, reason = BAD[case]
    spec = documents(tmp_path, [{"id": "good", "parts": [A, {"text": "good"}]}, row])
    ledger = Ledger()
    assert [sample.key for sample in read_all(spec, ledger)] == ["good"]
    assert [(entry.reason, entry.row) for entry in ledger.entries] == [(reason, 2)]
    assert len(ledger.entries[0].message) > 15
    assert ledger.rows == 2


def test_one_lost_picture_does_not_cost_the_document(tmp_path: Path) -> None:
    ledger = Ledger()
    (found,) = read_all(documents(tmp_path, [{"parts": [A, {"text": "one"}, GONE, {"text": "two"}]}]), ledger)
    assert shape(found) == ["<a>", "one\ntwo"]
    assert ledger.reasons == {"missing-file": 1}
    assert "part 2" in ledger.entries[0].message


def test_documents_of_words_alone_are_read_when_asked_for(tmp_path: Path) -> None:
    spec = documents(tmp_path, [{"parts": [{"text": "one"}]}])
    (found,) = read_all({**spec, "min_images": 0})
    assert found.sentence.parts == (Text("one", target=True),)


# MMC4


def mmc4_row(**changes: Any) -> dict[str, Any]:
    """Four sentences; of three pictures the first belongs to sentence 2, the second to 0, the third fits nothing."""
    pictures = [("a.jpg", 2, 0.3), ("b.jpg", 0, 0.26), ("c.jpg", 3, 0.1)]
    info = [{"image_name": name, "matched_text_index": n, "matched_sim": sim} for name, n, sim in pictures]
    matrix = [[0.1, 0.2, 0.3, 0.1], [0.26, 0.1, 0.29, 0.1], [0.0, 0.0, 0.0, 0.1]]
    row = {"text_list": ["zero", "one", "two", "three"], "image_info": info, "similarity_matrix": matrix, "url": "u"}
    return {**row, **changes}


def mmc4(folder: Path, rows: Sequence[Any]) -> dict[str, Any]:
    files.photos(folder / "images", ["a.jpg", "b.jpg", "c.jpg"])
    return {"path": str(files.jsonl(folder / "docs_no_face_shard_0_v2.jsonl", rows))}


@pytest.mark.parametrize(
    ("side", "expected"),
    [("before", ["<b>", "zero one", "<a>", "two three"]), ("after", ["zero", "<b>", "one two", "<a>", "three"])],
)
def test_a_picture_stands_beside_its_sentence_where_it_fits(tmp_path: Path, side: str, expected: list[str]) -> None:
    (found,) = read_all({**mmc4(tmp_path, [mmc4_row()]), "side": side})
    assert shape(found) == expected
    assert all(part.target for part in found.sentence if isinstance(part, Text))
    assert (found.key, found.metadata) == ("docs_no_face_shard_0_v2:1", {"url": "u"})


def test_the_threshold_and_the_number_of_pictures_are_kept(tmp_path: Path) -> None:
    spec = mmc4(tmp_path, [mmc4_row()])
    assert [shape(s) for s in read_all({**spec, "min_similarity": 0.28})] == [["zero one", "<a>", "two three"]]
    assert shape(read_all({**spec, "min_similarity": 0.0})[0]) == ["<b>", "zero one", "<a>", "two", "<c>", "three"]
    cut = read_all({**spec, "max_images": 1})
    assert [shape(sample) for sample in cut] == [["<b>", "zero one"], ["<a>", "two three"]]


def test_a_sentence_gets_its_best_picture_alone(tmp_path: Path) -> None:
    info = [{"image_name": f"{name}.jpg", "matched_text_index": 1, "matched_sim": sim} for name, sim in
            (("a", 0.3), ("b", 0.4), ("c", 0.35))]  # fmt: skip
    (found,) = read_all(mmc4(tmp_path, [mmc4_row(image_info=info)]))
    assert shape(found) == ["zero", "<b>", "one two three"]


def test_pictures_are_found_inside_the_row_and_inside_the_tar(tmp_path: Path) -> None:
    row = mmc4_row()
    row["image_info"][0]["image_base64"] = base64.b64encode(files.jpeg(4)).decode()
    members = {"0001.json": json.dumps(row), "pictures/b.JPG": files.jpeg(5), "c.jpg": files.jpeg(6)}
    row["image_info"][1]["image_name"] = "b.jpg"
    members["0001.json"] = json.dumps(row)
    path = files.tar(tmp_path / "shards" / "train-0.tar", members)
    for given in (path, path.parent, tmp_path / "shards" / "train-{0..3}.tar"):
        (found,) = read_all({"path": str(given), "reader": "mmc4", "split": "train"})
        assert shape(found) == ["<bytes 5>", "zero one", "<bytes 4>", "two three"]
        assert found.key == "train-0:0001"
    assert len(read_all({"path": str(path), "reader": "mmc4", "min_bytes": 10, "min_similarity": 0})[0].sentence) == 6
    with pytest.raises(DataError, match="1 media-count"):
        read_all({"path": str(path), "reader": "mmc4", "min_bytes": 100_000})


def test_one_to_one_pairs_have_the_greatest_sum(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    greedy = [[0.30, 0.29], [0.28, 0.10]]  # the best pair alone would leave 0.10 to the other
    assert sorted(one_to_one(greedy)) == [(0, 1), (1, 0)]
    spec = {**mmc4(tmp_path, [mmc4_row()]), "assign": "one_to_one", "min_similarity": 0.2}
    assert shape(read_all(spec)[0]) == ["<b>", "zero one", "<a>", "two three"]
    (tmp_path / "images" / "a.jpg").unlink()  # sentence 2 is now free for b
    assert shape(read_all(spec, Ledger())[0]) == ["zero one", "<b>", "two three"]


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'graftlm\[documents\]'"):
        read_all({**mmc4(tmp_path, [mmc4_row()]), "assign": "one_to_one"})


NONE_FITS = [{"image_name": "a.jpg", "matched_text_index": 0, "matched_sim": 0.1}]
BAD_MMC4: dict[str, tuple[Any, str]] = {
    "no sentences": (mmc4_row(text_list=None), "missing-column"),
    "sentences that are none": (mmc4_row(text_list=["one", 2]), "wrong-type"),
    "no pictures": (mmc4_row(image_info=None), "missing-column"),
    "pictures that are no list": (mmc4_row(image_info={"a.jpg": {}}), "wrong-type"),
    "an empty list of pictures": (mmc4_row(image_info=[]), "media-count"),
    "pictures that do not fit": (mmc4_row(image_info=NONE_FITS), "media-count"),
    "pictures that are gone": (mmc4_row(image_info=[{**NONE_FITS[0], "image_name": "gone.jpg"}]), "missing-file"),
    "a picture without a name": (mmc4_row(image_info=[{"matched_text_index": 0, "matched_sim": 1}]), "missing-column"),
    "a sentence that is not there": (mmc4_row(image_info=[{**NONE_FITS[0], "matched_text_index": 4}]), "wrong-type"),
    "a similarity in words": (mmc4_row(image_info=[{**NONE_FITS[0], "matched_sim": "much"}]), "wrong-type"),
    "sentences of white space": (mmc4_row(text_list=[" "] * 4), "missing-target"),
    "half a line": ('{"text_list": [', "bad-json"),
    "a list": ([1, 2], "wrong-type"),
}


@pytest.mark.parametrize("case", BAD_MMC4)
def test_a_bad_row_of_mmc4_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    row, reason = BAD_MMC4[case]
    ledger = Ledger()
    found = read_all({**mmc4(tmp_path, [mmc4_row(), row])}, ledger)
    assert len(found) == 1
    assert [(entry.reason, entry.row) for entry in ledger.entries] == [(reason, 2)]


def test_a_matrix_of_another_shape_is_bad_where_it_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    for matrix in (None, [[0.1] * 4] * 2, [[0.1] * 3] * 3, [["x"] * 4] * 3, [[float("nan")] * 4] * 3):
        ledger = Ledger()
        spec = mmc4(tmp_path, [mmc4_row(), mmc4_row(similarity_matrix=matrix)])
        assert len(read_all({**spec, "assign": "one_to_one"}, ledger)) == 1
        assert ledger.reasons == {"wrong-type": 1}
        assert len(read_all({**spec, "assign": "matched"})) == 2


def test_a_document_twice_in_a_tar_is_written_down(tmp_path: Path) -> None:
    row = json.dumps(mmc4_row())
    members = {"1.json": row, "a.jpg": files.jpeg(0), "b.jpg": files.jpeg(1), "c.jpg": files.jpeg(2), "1.JSON": row}
    ledger = Ledger()
    found = read_all({"path": str(files.tar(tmp_path / "s.tar", members)), "reader": "mmc4"}, ledger)
    assert [sample.key for sample in found] == ["s:1"]
    assert ledger.reasons == {"duplicate-id": 1}
