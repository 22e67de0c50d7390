"""metrics.jsonl across kills, trackers that are absent, an environment without secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graftlm.errors import MissingExtraError
from graftlm.train import log as logs
from graftlm.train.log import MetricsLog, environment, open_tracker, read_metrics


def test_a_resumed_log_has_no_row_twice_and_no_cut_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write("train", step, loss=step / 2)
    with path.open("a") as file:
        file.write('{"event": "train", "st')
    log = MetricsLog(path, resume_step=3)
    log.write("train", 4, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0)]
    assert len(path.read_text().splitlines()) == 4


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).write("train", 1, loss=1.0)
    MetricsLog(path)
    assert read_metrics(path) == []


def test_numbers_go_to_the_tracker_by_event_and_name(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, float], int]] = []
    log = MetricsLog(tmp_path / "m.jsonl", tracker=lambda values, step: seen.append((dict(values), step)))
    log.write("val", 7, loss=1, note="x", flag=True, each={"a": 2.0})
    assert seen == [({"val/loss": 1.0, "val/each/a": 2.0}, 7)]


def test_a_tracker_that_is_not_installed_is_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logs.__dict__["_TRACKERS"], "wandb", _absent)
    assert open_tracker("none", tmp_path, {}) is None
    with pytest.raises(MissingExtraError, match=r"pip install 'graftlm\[track\]'"):
        open_tracker("wandb", tmp_path, {})


def _absent(folder: Path, recipe: dict[str, object]) -> logs.Tracker:
    raise ImportError("wandb")


def test_the_environment_names_versions_and_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    text = json.dumps(environment())
    assert "hunter2" not in text
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert str(Path.home()) not in text
    assert environment()["versions"]["torch"] != "absent"
