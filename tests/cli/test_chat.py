"""`graft chat` from the command line, over toy grafts: piped, as JSON, once, and typed at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftlm import grafts
from graftlm.chat.history import read_history
from graftlm.cli.main import main
from graftlm.index.places import folder_of
from tests.chat.parts import ALWAYS, photos
from tests.conformance.test_systems import build

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of toy grafts by system."""
    folder = tmp_path_factory.mktemp("grafts")
    for name in ("clipcap", "fromage", "dual_encoder"):
        grafts.save(build(name), folder / name)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path / "home"))


def say(monkeypatch: pytest.MonkeyPatch, *lines: str | bytes, arguments: list[str]) -> int:
    """Pipes lines into `graft chat` with a few tokens an answer; returns the exit code."""
    raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    return main(["chat", *arguments, "--set", "max_tokens=5"])


def test_piped_lines_are_answered_without_a_prompt(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (path,) = photos(tmp_path, 1)
    history = tmp_path / "talk.json"
    arguments = [str(toys / "clipcap"), "--history", str(history)]
    assert say(monkeypatch, f"/image {path}", "hello", b"caf\xe9", arguments=arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"with your next words: {path}\n")
    assert "> " not in captured.out
    assert "/help" not in captured.err
    assert [part.role for part in read_history(history).dialogue.sentence].count("assistant") == 2
    assert say(monkeypatch, "/history", arguments=arguments) == 0
    assert f"you: [{path}]\nyou: hello\ngraft: " in capsys.readouterr().out


def test_a_line_that_cannot_be_followed_fails_the_whole_and_not_the_rest(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert say(monkeypatch, "/image gone.png", "/help", arguments=[str(toys / "clipcap")]) == 1
    captured = capsys.readouterr()
    assert "there is no file" in captured.err
    assert "/quit" in captured.out


def test_json_lines_show_photos_of_a_folder_that_is_indexed_on_the_way(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    paths = photos(folder, 3)
    arguments = [str(toys / "fromage"), "--json", "--index", str(folder), "--set", f"bias={ALWAYS}"]
    rows = [json.dumps({"text": "a dog", "images": [paths[0]]}), json.dumps({"text": "more"})]
    assert say(monkeypatch, *rows, arguments=arguments) == 0
    captured = capsys.readouterr()
    found = [json.loads(line)["images"][0]["path"] for line in captured.out.splitlines()]
    assert sorted(found) == paths[1:]
    assert "has no index yet; building it" in captured.err
    assert folder_of("holiday").is_dir()
    assert say(monkeypatch, rows[0], arguments=[*arguments[:3], "holiday", *arguments[4:]]) == 0
    captured = capsys.readouterr()
    assert "has no index yet" not in captured.err
    assert json.loads(captured.out)["images"][0]["path"] == found[0]


def test_only_photos_of_the_folder_are_shown_where_its_index_holds_more(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    inner = tmp_path / "all" / "inner"
    inner.mkdir(parents=True)
    photos(tmp_path / "all", 3)
    (path,) = photos(inner, 1)
    (tmp_path / "all" / "0.png").unlink()  # the same content
    graft = [str(toys / "fromage"), "--set", f"bias={ALWAYS}", "--set", "most=3", "--once", "a"]
    assert main(["chat", *graft, "--index", str(tmp_path / "all"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3
    assert main(["chat", *graft, "--index", str(inner), "--json"]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)["images"]] == [path]


def test_once_says_one_thing_and_leaves(toys: Path, tmp_path: Path, capsys: Captured) -> None:
    (path,) = photos(tmp_path, 1)
    graft = [str(toys / "clipcap"), "--image", path, "--set", "max_tokens=5"]
    assert main(["chat", *graft, "--once", "hello", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(["chat", *graft, "--once", "hello"]) == 0
    assert capsys.readouterr().out.strip() == text
    assert main(["chat", str(toys / "clipcap"), "--once", " "]) == 2
    assert "found an empty turn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["GRAFTS/dual_encoder"], "expected a graft that writes", 2),
        (["GRAFTS/clipcap", "--index", "."], "expected a graft that answers with pictures", 2),
        (["GRAFTS/fromage", "--index", "nowhere"], "expected a folder of photos or the name of an index", 1),
        (["GRAFTS/clipcap", "--image", "gone.png"], "there is no file", 1),
        (["GRAFTS/clipcap", "--set", "bias"], "expected NAME=VALUE", 2),
        (["GRAFTS/clipcap", "--set", "bais=1"], "did you mean 'bias'", 2),
        (["GRAFTS/clipcap", "--format", "poem"], "poem", 2),
        (["GRAFTS/clipcap", "--inline", "sixel"], "sixel", 2),
        (["GRAFTS/clipcap", "--history", "letter.txt"], "letter.txt: not valid JSON", 1),
        (["GRAFTS/clipcap", "--history", "other.json"], "found another JSON file", 1),
        (["GRAFTS/clipcap", "--history", "letter.txt/talk.json"], "cannot be written", 1),
        (["nobody-of-that-name"], "ready-made graft", 1),
    ],
)
def test_bad_options_are_a_sentence(
    arguments: list[str],
    says: str,
    code: int,
    toys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("letter.txt").write_text("dear diary")
    Path("other.json").write_text("{}")
    words = [word.replace("GRAFTS", str(toys)) for word in arguments]
    assert say(monkeypatch, arguments=words) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert "this is a bug" not in captured.err
    assert Path("letter.txt").read_text() == "dear diary"


def test_a_history_of_another_graft_is_taken_by_force_alone(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    history = tmp_path / "talk.json"
    assert say(monkeypatch, "hello", arguments=[str(toys / "clipcap"), "--history", str(history)]) == 0
    other = [str(toys / "fromage"), "--history", str(history)]
    before = history.read_bytes()
    assert say(monkeypatch, arguments=other) == 1
    assert "--force" in capsys.readouterr().err
    assert history.read_bytes() == before
    assert say(monkeypatch, "/history", arguments=[*other, "--force"]) == 0
    assert "you: hello" in capsys.readouterr().out
    assert read_history(history).graft == str(toys / "fromage")


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal that is stdin."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield ours
    os.close(ours)


def test_typed_at_a_terminal_there_is_a_prompt_and_ctrl_d_leaves(toys: Path, keyboard: int, capsys: Captured) -> None:
    os.write(keyboard, b"/imgae x\nhello\n\x04")
    assert main(["chat", str(toys / "clipcap"), "--set", "max_tokens=5"]) == 0
    captured = capsys.readouterr()
    assert "/help shows the commands" in captured.err
    assert re.search(r"> unknown command '/imgae'; did you mean '/image'\?", captured.err)
    assert captured.err.count("> ") == 3
    assert "> " not in captured.out


def test_the_features_of_shown_photos_are_kept_and_those_of_an_indexed_folder_are_not(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftlm.backbones import load_encoder
    from graftlm.features import CachedEncoder

    folder = tmp_path / "holiday"
    folder.mkdir()
    photos(folder, 3)
    (path,) = photos(tmp_path, 1)
    arguments = [str(toys / "fromage"), "--index", str(folder), "--set", "most=0"]
    assert say(monkeypatch, f"/image {path}", "a", arguments=arguments) == 0
    cached = CachedEncoder(load_encoder("toy"), tmp_path / "home" / "features")
    assert cached.stats().num_items == 1
