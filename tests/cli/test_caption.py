"""`graft caption` and `graft ask` over a responder that says what it saw."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import graftlm
from graftlm.cli.main import main
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import GraftError
from graftlm.lm.decode import Decoding
from tests.pictures import picture


class Parrot:
    """Answers with the file's name, the words it was given and the number of beams."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.decodings: list[Decoding] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        self.batches.append(len(sentences))
        self.decodings.append(decoding)
        answers = []
        for sentence in sentences:
            (image,) = sentence.media()
            assert isinstance(image, Image)
            assert sentence.parts[-1].target
            words = sentence.prompt().text()
            answers.append(Sentence.of(Text(f" {Path(str(image.source)).stem} {words} {decoding.num_beams} ")))
        return answers


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    parrot = Parrot()
    monkeypatch.setattr(graftlm, "load", lambda source="": parrot)
    graftlm._kept.cache_clear()
    return parrot


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for number, name in enumerate(("b.png", "a.PNG", "inner/c.png")):
        picture(number).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_each_photo_is_a_line_of_path_and_caption(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(photos / "b.png")
    assert main(["caption", path]) == 0
    assert capsys.readouterr().out == f"{path}\tb  3\n"


def test_a_folder_stands_for_the_pictures_in_it(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos), "--beam", "1"]) == 0
    names = [Path(line.split("\t")[0]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["a.PNG", "b.png", "c.png"]


def test_many_photos_are_answered_in_batches(parrot: Parrot, photos: Path) -> None:
    assert main(["caption", *[str(photos / "b.png")] * 20]) == 0
    assert parrot.batches == [8, 8, 4]


def test_a_prompt_begins_the_caption(parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(photos / "b.png"), "--prompt", "There is"]) == 0
    assert capsys.readouterr().out.split("\t")[1] == "There is b There is 3\n"


def test_a_bad_photo_is_named_and_the_others_are_captioned(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos / "notes.txt"), str(photos / "b.png"), str(photos / "gone.png")]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "notes.txt is not a picture" in captured.err
    assert "there is no file" in captured.err


def test_a_bad_folder_is_named_and_the_others_are_captioned(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, empty = photos / "closed", photos / "empty"
    closed.mkdir()
    empty.mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(closed) and allowed(path, mode))
    assert main(["caption", str(closed), str(empty), str(photos / "inner"), str(photos / "b.png")]) == 1
    captured = capsys.readouterr()
    assert [Path(line.split("\t")[0]).name for line in captured.out.splitlines()] == ["c.png", "b.png"]
    assert "closed: the folder may not be read" in captured.err
    assert "empty: expected a folder of pictures" in captured.err
    assert main(["caption", str(empty), str(photos / "b.png"), "--json"]) == 1
    assert [row["path"] for row in json.loads(capsys.readouterr().out)["errors"]] == [str(empty)]


def test_json_holds_captions_and_errors(parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(photos / "b.png"), str(photos / "notes.txt"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["graft"] == "clipcap-smollm2"
    assert [Path(row["path"]).name for row in answer["captions"]] == ["b.png"]
    assert [row["reason"] for row in answer["errors"]] == ["unreadable-image"]


def test_a_question_stands_between_picture_and_answer(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(photos / "b.png"), " What? "]) == 0
    assert capsys.readouterr().out == "b Question: What? Answer: 3\n"
    assert main(["ask", str(photos / "b.png"), "What?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "b Question: What? Answer: 3"


def test_the_python_one_liners_answer_the_same(parrot: Parrot, photos: Path) -> None:
    assert graftlm.caption(str(photos / "b.png")) == "b  3"
    assert graftlm.ask(str(photos / "b.png"), "What?", beams=1) == "b Question: What? Answer: 1"


@pytest.mark.parametrize("wrong", [3, None, ["a.png"], b"no picture", "gone.png", np.zeros((4, 4))])
def test_the_python_one_liners_refuse_what_is_no_picture_before_a_graft_is_loaded(
    wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graftlm, "load", lambda source="": pytest.fail("loaded"))
    graftlm._kept.cache_clear()
    for call in (lambda: graftlm.caption(wrong), lambda: graftlm.ask(wrong, "What?")):  # type: ignore[arg-type]
        with pytest.raises(GraftError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_python_one_liners_take_pixels(parrot: Parrot) -> None:
    assert graftlm.caption(np.asarray(picture(0))).endswith("3")


def test_no_caption_says_three_words_twice(parrot: Parrot, photos: Path) -> None:
    assert main(["caption", str(photos / "b.png")]) == 0
    graftlm.caption(str(photos / "b.png"))
    assert [decoding.no_repeat_ngram for decoding in parrot.decodings] == [3, 3]


def test_an_empty_name_is_not_the_current_folder(
    parrot: Parrot, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    assert main(["caption", ""]) == 2
    assert "found an empty one" in capsys.readouterr().err
