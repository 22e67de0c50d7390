"""The official files of VIST and VisDial, in small: stories, missing photos, rounds, judged rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.readers import detect, read_all
from graftlm.data.sentence import Image, Sentence
from graftlm.errors import DataError
from tests.data.readers.files import visdial, vist


def test_a_story_is_its_words_and_photos_with_the_last_photo_sought(tmp_path: Path) -> None:
    folder = vist(tmp_path)
    samples = read_all({"path": str(folder), "split": "val"})
    assert [sample.key for sample in samples] == ["30355", "30360", "30370", "30375"]
    first = samples[0]
    assert [type(part).__name__ for part in first.sentence] == ["Text", "Image"] * 5
    assert [part.target for part in first.sentence] == [False] * 9 + [True]
    assert first.sentence.parts[2].content == " so we decided to take the kids there ."  # type: ignore[union-attr]
    assert first.sentence.parts[9] == Image(str(folder / "images" / "105.jpg"), target=True)
    assert first.references == ("105",)


def test_the_order_is_the_authors_and_the_metadata_keeps_the_files(tmp_path: Path) -> None:
    story = read_all({"path": str(vist(tmp_path))})[1]
    photos = [Path(str(part.source)).stem for part in story.sentence if isinstance(part, Image)]
    assert photos == ["201", "202", "203", "204", "205"]
    assert [scene.photo for scene in story.metadata["scenes"]] == ["202", "201", "203", "205", "204"]


def test_a_story_that_lacks_a_photo_is_read_for_evaluation_alone(tmp_path: Path) -> None:
    folder = str(vist(tmp_path))
    broken = next(sample for sample in read_all({"path": folder, "per": "media"}) if sample.key == "30365")
    assert len(broken.sentence.media()) == 4
    assert not broken.sentence.targets().parts
    assert "30365" not in {sample.key for sample in read_all({"path": folder})}


def test_a_story_of_another_length_goes_to_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger()
    read_all({"path": str(vist(tmp_path))}, ledger)
    assert [(entry.reason, str(entry.row)) for entry in ledger.entries] == [("short-story", "30380")]


def test_the_words_can_be_the_original_ones(tmp_path: Path) -> None:
    story = read_all({"path": str(vist(tmp_path)), "text": "original_text"})[0]
    assert story.sentence.text().startswith("Our landmark tree")


def test_a_dialogue_is_a_photo_with_questions_and_answers_to_write(tmp_path: Path) -> None:
    folder = visdial(tmp_path)
    samples = read_all({"path": str(folder / "visdial_1.0_val.json")})
    assert [sample.key for sample in samples] == ["185565", "284024", "574189"]
    words = samples[0].sentence.text()
    assert words.startswith("Q: is it sunny?\nA: yes\nQ: how many dogs are there?\nA: 1 dog\n")
    assert samples[0].sentence.targets() == Sentence(tuple(p for p in samples[0].sentence if p.target))
    assert len(samples[0].sentence.targets()) == 3
    one = samples[1].metadata["rounds"][2]
    assert (one.options, one.right, one.answer) == (("no people", "yes", "no", "maybe"), 3, "maybe")


def test_relevance_belongs_to_the_round_that_its_number_from_one_says(tmp_path: Path) -> None:
    rounds = [sample.metadata["rounds"] for sample in read_all({"path": str(visdial(tmp_path))})]
    judged = [[one.relevance is not None for one in found] for found in rounds]
    assert judged == [[True, False, False], [False, False, True], [False, True, False]]
    assert rounds[2][1].relevance == (0.6, 0.0, 1.0, 0.0)


def test_both_formats_are_found_by_their_content(tmp_path: Path) -> None:
    assert detect(str(vist(tmp_path / "a"))) == "vist"
    assert detect(str(visdial(tmp_path / "b"))) == "visdial"


def test_files_that_are_something_else_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = visdial(tmp_path)
    file = folder / "visdial_1.0_val.json"
    dense = folder / "visdial_1.0_val_dense_annotations.json"
    rows = json.loads(dense.read_text("utf-8"))
    rows[0]["round_id"] = 0
    dense.write_text(json.dumps(rows), "utf-8")
    with pytest.raises(DataError, match="round_id to count from 1, found 0"):
        read_all({"path": str(file)})
    rows[0]["round_id"] = 1
    for wrong in ({"image_id": None}, {"gt_relevance": ["much"]}):
        dense.write_text(json.dumps([rows[0] | wrong]), "utf-8")
        with pytest.raises(DataError, match="expected image_id, round_id and gt_relevance"):
            read_all({"path": str(file)})
    dense.write_text("{}", "utf-8")
    with pytest.raises(DataError, match="expected image_id, round_id and gt_relevance"):
        read_all({"path": str(file)})
    dense.unlink()
    file.write_text('{"data": {"dialogs": 3}}', "utf-8")
    with pytest.raises(DataError, match="expected a list 'questions'"):
        read_all({"path": str(file), "reader": "visdial"})
    stories = tmp_path / "val.story-in-sequence.json"
    stories.write_text('{"images": []}', "utf-8")
    with pytest.raises(DataError, match="expected a list 'annotations'"):
        read_all({"path": str(stories), "reader": "vist"})


def test_bad_rows_of_both_go_to_the_ledger_with_their_place(tmp_path: Path) -> None:
    folder = visdial(tmp_path)
    file = folder / "visdial_1.0_val.json"
    content = json.loads(file.read_text("utf-8"))
    content["data"]["dialogs"][0]["dialog"][0]["gt_index"] = 99
    content["data"]["dialogs"][1]["dialog"][0]["question"] = 99
    file.write_text(json.dumps(content), "utf-8")
    ledger = Ledger()
    assert len(read_all({"path": str(file)}, ledger)) == 1
    assert [str(entry.row) for entry in ledger.entries] == ["dialogs[0]", "dialogs[1]"]
