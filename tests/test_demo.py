"""The demonstration: its numbers, its proof, its page, and what it says where something is missing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from graftlm.cli.main import main
from graftlm.data.scenes import Scenes
from graftlm.data.sentence import Image, Sentence
from graftlm.demo import run as demo
from graftlm.demo.report import print_outcome, spread, write_report
from graftlm.errors import ConfigError, UsageError
from graftlm.lm.decode import Decoding
from tests.architecture.source import ROOT

TOY = """
system: {name: clipcap, lm: toy, encoder: toy, precision: float32, mapper: grid, inject: prefix, grid_side: 2, rank: 8}
data:
  train: {reader: scenes, limit: 24, families: [position, question]}
  val: {reader: scenes, split: val, limit: 4}
train: {lr: 1.0e-2, batch_size: 4, max_steps: 6, eval_every: 0, save_every: 0}
evaluate: {blind: false, sample_every: 0}
run: {log_every: 2}
"""


class Knowing:
    """Answers every picture with the words it was given for it."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.asked: list[Sentence] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        self.asked += sentences
        return [Sentence.of(word) for word in self.words[: len(sentences)]]


@pytest.fixture(scope="module")
def toy_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(TOY)
    return path


@pytest.fixture(scope="module")
def outcome(toy_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Outcome:
    """A whole demonstration over toy parts."""
    folder = tmp_path_factory.mktemp("runs")
    return demo.run(demo.Options(held_out=6, recipe=toy_recipe, folder=folder, quiet=True))


def test_the_verb_prints_the_contract_as_its_last_line_of_stdout(
    toy_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", str(toy_recipe), "--limit", "6", "--folder", str(tmp_path), "--seed", "3", "--json"]
    assert main(["demo", *arguments]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert set(found["scenes"]) == {"before", "after", "blind"}
    assert all(0 <= value <= 100 for value in found["scenes"].values())
    assert found["frozen_unchanged"] is True
    assert found["n"] == 6
    assert found["seed"] == 3
    assert found["seconds"] > 0
    assert found["steps"] == 6
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert "3. 6 held-out scenes" in err


def test_without_json_the_table_and_the_reports_path_go_to_stdout(
    toy_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--recipe", str(toy_recipe), "--limit", "2", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "exactly right of 2" in out
    assert "Every byte of the language model" in out
    assert Path(re.search(r"Report: (.*)", out)[1]).is_file()


def test_the_outcome_holds_answers_losses_and_an_unchanged_hash(outcome: demo.Outcome) -> None:
    assert [row.reference for row in outcome.answered] == [
        sample.references[0] for sample in Scenes("test", 6, families=("position", "question"))
    ]
    assert outcome.frozen_unchanged
    assert len(outcome.frozen[0]) == 64
    assert outcome.training.steps == 6
    assert [row["step"] for row in outcome.metrics if row["event"] == "train"] == [2, 4, 6]
    assert set(outcome.seconds) == {"photos", "models and features", "answers", "training"}


def test_only_answers_that_are_exactly_right_count(outcome: demo.Outcome) -> None:
    rows = [
        replace(row, before="", after=row.reference if number < 3 else row.reference.upper(), blind=row.reference)
        for number, row in enumerate(outcome.answered)
    ]
    assert replace(outcome, answered=rows).accuracy() == {"before": 0.0, "after": 50.0, "blind": 100.0}


def test_blind_answers_come_from_black_pictures(outcome: demo.Outcome) -> None:
    assert len({row.blind for row in outcome.answered if row.sample.metadata["family"] == "position"}) == 1


def test_a_changed_hash_is_said_on_the_page_and_in_the_terminal(outcome: demo.Outcome, tmp_path: Path) -> None:
    changed = replace(outcome, frozen=("a" * 64, "b" * 64))
    assert not changed.frozen_unchanged
    assert "frozen parts have changed" in write_report(changed, tmp_path / "page.html").read_text()
    printed = io.StringIO()
    print_outcome(changed, Console(width=120, file=printed))
    assert "frozen parts have changed" in printed.getvalue()


def test_the_page_is_self_contained_and_shows_every_answer(outcome: demo.Outcome, tmp_path: Path) -> None:
    photo = demo.Photo(demo.photo_paths()[0], "a <b>cat</b>")
    text = write_report(replace(outcome, photos=[photo], note=""), tmp_path / "reports" / "page.html").read_text()
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]*)", text)
    assert len(sources) > len(outcome.answered)
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in text.replace("data:image", "")
    assert "a &lt;b&gt;cat&lt;/b&gt;" in text
    assert "<svg" in text
    assert "unchanged" in text
    assert "mapper: grid" in text
    assert not re.search(r"\$[a-z]", re.sub(r"<article.*?</article>", "", text, flags=re.DOTALL))


def test_shown_scenes_are_evenly_spread(outcome: demo.Outcome) -> None:
    assert spread(outcome.answered, 3) == [outcome.answered[index] for index in (0, 2, 4)]
    assert spread(outcome.answered, 100) == outcome.answered


def test_photos_are_captioned_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import graftlm.grafts

    knowing = Knowing(["one", "two", "three", "four", "five"])
    monkeypatch.setattr(graftlm.grafts, "load", lambda source: knowing)
    monkeypatch.setattr(graftlm.grafts, "ready_made", lambda: {"mine": Path("mine")})
    photos, note = demo.caption_photos("mine", demo.photo_paths())
    assert [photo.caption for photo in photos] == ["one", "two", "three", "four", "five"]
    assert note == ""
    shown = [part.source for sentence in knowing.asked for part in sentence if isinstance(part, Image)]
    assert shown == [photo.path for photo in photos]


def test_a_missing_graft_or_missing_photos_are_one_sentence() -> None:
    assert demo.caption_photos("no-such-graft", demo.photo_paths()) == (
        [],
        "Skipped: the ready-made graft no-such-graft is not part of this installation.",
    )
    photos, note = demo.caption_photos("no-such-graft", [])
    assert photos == []
    assert note.startswith("Skipped: there are no sample photos here")


def test_options_go_into_the_recipe() -> None:
    recipe = demo.demo_recipe(demo.Options(minutes=2.5, seed=7, overrides=("train.batch_size=4",)))
    assert recipe.train.max_minutes == 2.5
    assert recipe.train.seed == recipe.data.train["seed"] == 7
    assert recipe.data.val is not None
    assert recipe.data.val["seed"] == 7
    assert recipe.train.batch_size == 4
    assert demo.demo_recipe(demo.Options()).train.max_steps is not None
    with pytest.raises(ConfigError, match="did you mean"):
        demo.demo_recipe(demo.Options(overrides=("train.batchsize=4",)))


def test_without_its_recipe_the_demonstration_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "shipped", lambda name: None)
    with pytest.raises(UsageError, match=r"expected recipes/demo_scenes\.yaml, found none; run it in a clone"):
        demo.demo_recipe(demo.Options())


def test_the_demonstrations_recipe_learns_from_scenes_and_validates_on_others() -> None:
    recipe = demo.demo_recipe(demo.Options())
    assert recipe.data.train["reader"] == "scenes"
    assert recipe.data.val is not None
    assert recipe.data.val["split"] == "val"
    assert demo.shipped(demo.RECIPE) == ROOT / demo.RECIPE
