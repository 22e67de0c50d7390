"""Runs in processes of their own: killed for real, and two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from graftlm.config import Recipe
from graftlm.storage import step_folder
from graftlm.train.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    # A session of its own, so that a run which takes too long is ended with the processes it started.
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            output, errors = run.communicate(timeout=280)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors[-2000:]
    return output


def test_killed_cache_training_and_conversion_leave_no_trace() -> None:
    output = python(str(ROOT / "benchmarks" / "resume.py"), "--kills", "3", "--stand-in", "--json")
    result = json.loads(output.splitlines()[-1])
    assert result["different"] == []
    assert result["theirs"] >= 2
    assert result["ratio"] == 1.0


def test_two_processes_under_torchrun_train_one_graft(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(train={"batch_size": 2}, evaluate={"sample_every": 0})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    output = python(
        *launcher, "-m", "graftlm", "train", str(tmp_path / "r.yaml"), "--run-folder", str(tmp_path / "two"), "--json"
    )
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert len(lines) == 1  # one process speaks
    result = json.loads(lines[0])
    assert (result["steps"], result["sentences"]) == (12, 48)
    assert step_folder(tmp_path / "two" / "checkpoints", 12).is_dir()
    state = json.loads((step_folder(tmp_path / "two" / "checkpoints", 12) / "state.json").read_text())
    assert len(state["random"]) == 2
    losses = [row["loss"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if row["event"] == "val"]
    assert losses[-1] < losses[0]
