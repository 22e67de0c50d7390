"""README and docs: what is written runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import graftlm
from graftlm.cli.main import main, verbs
from graftlm.data.sentence import Sentence, Text
from graftlm.lm.decode import Decoding
from tests.architecture.source import ROOT
from tests.pictures import picture

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPTION = re.compile(r"--[a-z][a-z-]*")


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(start: str) -> Iterator[tuple[str, list[str]]]:
    """(document, words) of every line of a bash block that begins with `start`."""
    for path in DOCUMENTS:
        for block in blocks(path, "bash"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == [start]:
                    yield path.name, words[1:]


class Answering:
    """Answers every sentence."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        return [Sentence.of(Text("a photo")) for _ in sentences]


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("photo.jpg", "other.jpg")):
        picture(number).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graftlm, "load", lambda source="": Answering())
    graftlm._kept.cache_clear()
    found = blocks(ROOT / "README.md", "python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["a photo", "photo.jpg a photo", "other.jpg a photo"]


def test_the_system_of_adding_a_system_is_built_and_learns(tmp_path: Path) -> None:
    from graftlm.backbones import load_parts
    from graftlm.data.sentence import Image

    space: dict[str, object] = {"__name__": "window"}
    (block,) = blocks(ROOT / "docs" / "adding_a_system.md", "python")
    exec(compile(block, "adding_a_system.md", "exec"), space)
    cls, config_class = space["Window"], space["WindowConfig"]
    config = config_class(lm="toy", encoder="toy", precision="float32")  # type: ignore[operator]
    system = cls.build(config, load_parts(config))  # type: ignore[attr-defined]
    losses = system.losses([Sentence.of(Image(picture(0)), Text("a red block", target=True))])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for _, parameter in system.trainable())


def test_every_verb_and_option_in_the_documents_exists(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(commands("graft"))
    assert found
    for document, words in found:
        verb = words[0]
        assert verb in verbs(), f"{document}: graft {verb}"
        group = [word for word in words[1:2] if re.fullmatch(r"[a-z]+", word)]
        assert main([verb, "--help"]) == 0
        printed = capsys.readouterr().out
        if "Commands:" in printed:
            assert main([verb, *group, "--help"]) == 0, f"{document}: graft {verb} {group}"
            printed = capsys.readouterr().out
        for option in (word for word in words if OPTION.fullmatch(word)):
            assert re.search(rf"{option}\b", printed), f"{document}: graft {verb} has no option {option}"


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    found = [(document, word) for document, words in commands("make") for word in words]
    assert found
    assert [pair for pair in found if pair[1] not in targets] == []
    assert {"setup", "demo", "test", "check", "docs", "clean"} <= targets


def test_relative_links_lead_somewhere() -> None:
    broken = []
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_recipes_in_the_documents_exist() -> None:
    words = {word for _, line in commands("graft") for word in line}
    named = {word for word in words if word.startswith("recipes/") and word.endswith(".yaml")}
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []
