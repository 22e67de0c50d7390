"""`graft index` and `graft find` over a stand-in for a graft: photos and words of one colour meet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import graftlm
from graftlm.cli.main import main
from graftlm.data.media import load_image
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.index.places import default_folder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


class Colours:
    """Sees the mean colour of a picture, and reads the names of colours."""

    shared_dim = 3

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.fingerprint = fingerprint
        self.asked: list[Sentence] = []

    def embed_media(self, media: Sequence[MediaPart]) -> torch.Tensor:
        assert all(isinstance(part, Image) for part in media)
        means = [np.asarray(load_image(part.source)).mean((0, 1)) for part in media]  # type: ignore[union-attr]
        return torch.nn.functional.normalize(torch.tensor(np.array(means) + 0.01, dtype=torch.float32), dim=1)

    def embed_queries(self, sentences: Sequence[Sentence]) -> torch.Tensor:
        self.asked.extend(sentences)
        return torch.nn.functional.normalize(torch.stack([self._query(one) for one in sentences]), dim=1)

    def retrieval_fingerprint(self) -> str:
        return self.fingerprint

    def _query(self, sentence: Sentence) -> torch.Tensor:
        last = sentence.parts[-1]
        assert isinstance(last, Image)
        assert last.is_sought
        words = [torch.tensor(COLOURS[w]) / 255 for w in re.findall(r"\w+", sentence.text()) if w in COLOURS]
        media = sentence.media()
        return sum([*words, *(self.embed_media(media) if media else [])], torch.full((3,), 1e-3))


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    colours = Colours()
    monkeypatch.setattr(graftlm, "load", lambda source="": colours)
    return colours


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "my photos"
    (folder / "inner").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Pillow.new("RGB", (8, 8), colour).save(folder / ("inner" if name == "blue" else ".") / f"{name}.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "red.png", "author": "Ann"}))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The JSON of a command."""
    assert main([*arguments, "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def found(answer: dict[str, Any]) -> list[str]:
    """Names of the photos of an answer."""
    return [Path(hit["path"]).stem for hit in answer["hits"]]


def test_a_folder_is_indexed_at_the_first_question(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find", "something red", str(photos), "--count", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"1.0000\t{photos / 'red.png'}\n"
    assert "has no index yet; building it first" in captured.err
    assert main(["find", "green", str(photos), "-n", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"1.0000\t{photos / 'green.png'}\n"
    assert captured.err == ""
    assert colours.asked[-1].text() == "green"


def test_the_only_index_needs_no_name(colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "index", "add", str(photos))
    assert found(run(capsys, "find", "blue"))[0] == "blue"
    assert found(run(capsys, "find", "blue", "my-photos"))[0] == "blue"


def test_the_answer_in_json_tells_all(colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, "find", "red", str(photos), "--count", "2")
    assert (answer["index"], answer["graft"], answer["photos"]) == ("my-photos", "fromage-smollm2", 4)
    assert answer["query"] == {"text": "red", "pictures": []}
    first = answer["hits"][0]
    assert (first["path"], first["metadata"]) == (str(photos / "red.png"), {"author": "Ann"})
    assert first["score"] == pytest.approx(1.0, abs=1e-3)
    assert len(first["key"]) == 64
    assert set(answer["seconds"]) == {"load", "query", "search"}
    assert len(answer["hits"]) == 2


def test_a_photo_finds_others_like_it_and_not_itself(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Pillow.new("RGB", (8, 8), (250, 20, 0)).save(photos / "reddish.png")
    answer = run(capsys, "find", "--image", str(photos / "red.png"), str(photos))
    assert found(answer)[0] == "reddish"
    assert "red" not in found(answer)
    assert colours.asked == []


def test_a_photo_and_words_are_one_question(colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, "find", "but green", str(photos), "--image", str(photos / "red.png"))
    assert found(answer)[0] == "yellow"
    (asked,) = colours.asked
    assert [type(part).__name__ for part in asked] == ["Image", "Text", "Image"]


def test_a_dialogue_is_a_question(
    colours: Colours, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue = Sentence((Text("red", role="user"), Image("my photos/inner/blue.png"), Text("no", target=True)))
    (tmp_path / "dialogue.json").write_text(json.dumps(dialogue.to_json()))
    answer = run(capsys, "find", "green", str(photos), "--dialogue", str(tmp_path / "dialogue.json"))
    assert "blue" not in found(answer)
    (asked,) = colours.asked
    assert asked.text() == "rednogreen"
    assert not any(part.target for part in asked.parts[:-1])


def test_filters_and_exclusions_hold(colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("find", "red", str(photos))
    assert found(run(capsys, *base, "--filter", "folder=inner")) == ["blue"]
    assert found(run(capsys, *base, "--filter", "author=Ann", "--filter", "name=*.png")) == ["red"]
    assert "red" not in found(run(capsys, *base, "--exclude", str(photos / "red.png")))
    rest = found(run(capsys, *base, "--exclude", "*/inner/*", "--exclude", "gr*.png"))
    assert sorted(rest) == ["red", "yellow"]
    assert main([*base, "--filter", "date>soon"]) == 2
    assert "expected a date" in capsys.readouterr().err
    assert main([*base, "--filter", "author=Bob"]) == 0
    assert "nothing was found" in capsys.readouterr().err


def test_a_folder_within_the_index_is_searched_alone(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos))
    assert found(run(capsys, "find", "red", str(photos / "inner"))) == ["blue"]
    assert [row["name"] for row in run(capsys, "index", "info")["indexes"]] == ["my-photos"]


def test_a_folder_comes_before_an_index_of_its_name_that_does_not_hold_it(
    colours: Colours, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos), "--name", "holiday")
    monkeypatch.chdir(tmp_path)
    assert "red" in found(run(capsys, "find", "red", "holiday"))
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "sun.png").write_bytes((photos / "yellow.png").read_bytes())
    assert found(run(capsys, "find", "red", "holiday")) == ["sun"]


def test_what_has_changed_since_is_told_with_the_command(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos))
    (photos / "red.png").unlink()
    assert main(["find", "green", str(photos), "-n", "1"]) == 0
    assert f"1 photos are new, changed or gone since; run: graft index add {photos}" in capsys.readouterr().err


def test_the_page_holds_every_photo_and_its_score(
    colours: Colours, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a <b> & 'c'.png").write_bytes((photos / "green.png").read_bytes() + b"more")
    run(capsys, "index", "add", str(photos))
    (photos / "yellow.png").unlink()
    page = tmp_path / "out" / "page.html"
    answer = run(capsys, "find", "<b>green</b>", str(photos), "--image", str(photos / "red.png"), "--report", str(page))
    text = page.read_text()
    assert answer["report"] == str(page)
    assert text.count("<article>") == len(answer["hits"]) == 4
    assert text.count("data:image/jpeg;base64,") == 4  # three that are there, and the one asked for
    assert "the file is gone" in text
    assert "<h1>&lt;b&gt;green&lt;/b&gt;</h1>" in text
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;.png" in text
    assert not re.search(r"(src|href)=['\"](http|//)", text)


def test_the_vectors_of_another_graft_are_refused_and_mended(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos))
    colours.fingerprint = "e" * 64
    for command in (["find", "red", str(photos)], ["index", "add", str(photos)]):
        assert main(command) == 1
        message = capsys.readouterr().err
        assert "its vectors were made by graft 'fromage-smollm2'" in message
    mend = message.strip().split("graft index ")[-1].split()
    assert main(["index", *mend]) == 0
    capsys.readouterr()
    assert found(run(capsys, "find", "red", str(photos)))[0] == "red"


def test_an_index_is_shown_and_removed_and_the_photos_stay(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.jpg").write_text("no picture")
    assert main(["index", "add", str(photos), "--name", "mine"]) == 0
    captured = capsys.readouterr()
    assert "5 new" in captured.out
    assert "1 unreadable" in captured.out
    assert "bad.jpg is not a picture" in captured.err
    (row,) = run(capsys, "index", "info")["indexes"]
    assert (row["name"], row["photos"], row["graft"], row["width"]) == ("mine", 4, "fromage-smollm2", 3)
    assert row["unreadable"] == {"unreadable-image": 1}
    assert main(["index", "info", "mine"]) == 0
    assert "mine: 4 photos, 4 different (1 unreadable-image)" in capsys.readouterr().out
    assert run(capsys, "index", "remove", "mine", "--folder", str(photos / "inner"))["photos"] == 1
    assert run(capsys, "index", "remove", "mine")["photos"] == 3
    assert len(list(photos.rglob("*.png"))) == 4
    assert list(default_folder().iterdir()) == []
    assert main(["index", "info"]) == 0
    assert capsys.readouterr().out.startswith("nothing is indexed in ")


def test_an_index_without_a_folder_to_add_is_brought_up_to_date(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos), "--name", "mine")
    Pillow.new("RGB", (8, 8), (9, 9, 9)).save(photos / "black.png")
    answer = run(capsys, "index", "add", "--name", "mine")
    assert answer["folders"][str(photos)]["new"] == 1


def test_a_damaged_index_is_named_and_can_be_removed(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", "add", str(photos))
    (default_folder() / "my-photos" / "catalogue.sqlite").write_bytes(b"rubbish" * 1000)
    for path in default_folder().glob("*/catalogue.sqlite-*"):
        path.unlink()
    assert "damaged or foreign" in run(capsys, "index", "info")["damaged"]["my-photos"]
    assert main(["find", "red", "my-photos"]) == 1
    assert "damaged or foreign file" in capsys.readouterr().err
    assert run(capsys, "index", "remove", "my-photos")["photos"] == 0
    assert found(run(capsys, "find", "red", str(photos)))[0] == "red"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["find"], 2, "nothing to seek"),
        (["find", "red"], 2, "nothing is indexed yet"),
        (
            ["find", "red", "nowhere"],
            1,
            "expected a folder of photos or the name of an index (none yet), found neither",
        ),
        (["find", "\udcff", "."], 2, "expected words in UTF-8"),
        (["find", "red", "--dialogue", "none.json"], 1, "none.json: the dialogue cannot be read"),
        (["index", "add"], 2, "expected a folder of photos, or --name"),
        (["index", "add", "nowhere"], 1, "nowhere: expected a folder of photos"),
        (["index", "add", " "], 2, "found an empty name"),
        (["index", "add", ".", "--name", "../up"], 2, "name of an index: expected letters"),
        (["index", "remove", "none"], 1, "there is no index 'none'"),
        (["index", "info", "none"], 1, "expected an image index, found no catalogue.sqlite"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    colours: Colours, photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["index", "add"], ["find", "red"]])
def test_a_folder_whose_name_is_not_utf8_is_refused(
    colours: Colours, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\udcff"
    try:
        folder.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes UTF-8 names alone")
    assert main([*words, str(folder)]) == 1
    assert "expected a folder whose name is UTF-8" in capsys.readouterr().err
    assert run(capsys, "index", "info")["indexes"] == []


@pytest.mark.parametrize("text", ["no json", "3", '["a"]', '[{"type": "text"}]'])
def test_a_file_that_is_no_dialogue_is_refused(
    colours: Colours, photos: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.json").write_text(text)
    assert main(["find", "red", str(photos), "--dialogue", str(tmp_path / "d.json")]) == 1
    assert "expected" in capsys.readouterr().err


def test_a_graft_that_only_writes_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graftlm, "load", lambda source="": object())
    assert main(["find", "red", str(photos), "--graft", "clipcap-smollm2"]) == 2
    assert "expected one that finds pictures, found one that only writes" in capsys.readouterr().err
