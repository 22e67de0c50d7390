"""`graft cache` over the toy encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftlm.cli.main import main
from tests.pictures import picture


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The JSON of `graft cache`."""
    assert main(["cache", *arguments, "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def test_a_folder_of_photos_is_encoded_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, "build", str(photos), "--encoder", "toy", "--quiet")
    second = run(capsys, "build", str(photos), "--encoder", "toy", "--quiet")
    assert (first["cached"], first["computed"]) == (0, 3)
    assert (second["cached"], second["computed"]) == (3, 0)


def test_a_bad_photo_is_named_and_the_rest_is_encoded(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.png").write_text("no picture")
    assert main(["cache", "build", str(photos), "--encoder", "toy", "--quiet"]) == 1
    assert "bad.png is not a picture" in capsys.readouterr().err
    assert run(capsys, "info")["caches"][0]["items"] == 3


def test_films_are_encoded_by_their_frames_beside_the_photos(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [{"video": str(photos)}, {"text": "three frames"}, {"image": str(photos / "0.png")}, {"text": "one photo"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"parts": parts}) + "\n")
    arguments = ["cache", "build", str(tmp_path / "d.jsonl"), "--encoder", "toy", "--quiet", "--json"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["photos"], row["computed"]) for row in rows] == [(1, 1), (1, 1)]
    assert sorted(cache["modality"] for cache in run(capsys, "info")["caches"]) == ["image", "video"]
    assert main([*arguments, "--frames", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["computed"] for row in rows] == [0, 1]  # other frames are other features


def test_a_recipe_names_its_data_and_its_encoder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{number}.png", "text": "blocks"} for number in (0, 1)]
    table = photos / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "system": {"name": "frozen", "lm": "toy", "encoder": "toy", "precision": "float32"},
        "data": {"train": {"reader": "jsonl", "path": str(table)}},
        "train": {"max_steps": 1},
    }
    (photos / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answer = run(capsys, "build", str(photos / "recipe.yaml"), "--quiet")
    assert (answer["encoder"], answer["computed"]) == ("toy", 2)


def test_an_encoder_is_cleared_by_the_first_letters_of_its_fingerprint(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "build", str(photos), "--encoder", "toy", "--quiet")
    (cache,) = run(capsys, "info")["caches"]
    assert main(["cache", "clear", "zzz"]) == 2
    assert f"there are: {cache['fingerprint'][:12]}" in capsys.readouterr().err
    removed = run(capsys, "clear", cache["fingerprint"][:6])["removed"]
    assert [row["items"] for row in removed] == [3]
    assert run(capsys, "info")["caches"] == []


def test_clearing_everything_has_to_be_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear"]) == 2
    assert "or --all" in capsys.readouterr().err
    assert main(["cache", "clear", "--all"]) == 0


def test_an_empty_cache_says_where_it_would_be(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info"]) == 0
    assert capsys.readouterr().out.startswith("nothing is cached in ")


def test_clearing_an_empty_cache_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "--all"]) == 0
    assert "nothing is cached in" in capsys.readouterr().out
