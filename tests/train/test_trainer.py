"""Whole runs over the toys: what they write, how they end, and that a kill leaves no trace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm import grafts
from graftlm.config import Recipe
from graftlm.data.sentence import Sentence
from graftlm.errors import CheckpointError, ConfigError, FrozenError, GraftError, UsageError
from graftlm.storage import sha256, step_folder, step_folders
from graftlm.train.log import read_metrics
from graftlm.train.progress import TrainResult
from graftlm.train.setup import Run, prepare
from graftlm.train.source import Source
from graftlm.train.trainer import Trainer, train
from graftlm.train.validate import Validation

RecipeMaker = Callable[..., Recipe]


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


class KilledSource:
    """A source that is killed before its batch number `at`."""

    def __init__(self, inner: Source, at: int) -> None:
        self.inner = inner
        self.left = at
        self.batches_per_epoch = inner.batches_per_epoch
        self.sentences = inner.sentences
        self.factors = inner.factors

    def next_batch(self) -> list[Sentence]:
        self.left -= 1
        if self.left < 0:
            raise KilledError
        return self.inner.next_batch()

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.inner.restore(state)


def train_until_killed(recipe: Recipe, folder: Path, at: int) -> None:
    with prepare(recipe, folder, resume=False, quiet=True) as run:
        trainer = trainer_of(replace(run, source=KilledSource(run.source, at)))
        with pytest.raises(KilledError):
            trainer.run()


def trainer_of(run: Run) -> Trainer:
    return Trainer(run.system, run.recipe, run.folder, run.source, run.validation, quiet=True)


def end_state(folder: Path) -> dict[str, str]:
    """What must be equal to the bit after any kill."""
    last = step_folders(folder / "checkpoints")[-1]
    files = [last / "trainable.safetensors", last / "optimizer.safetensors", folder / "graft" / "graft.safetensors"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    timed = ("seconds", "train_seconds", "captions_per_s")
    rows = [{key: row[key] for key in row if key not in timed} for row in read_metrics(folder / "metrics.jsonl")]
    return {**found, "metrics": json.dumps(rows)}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """End states of runs that nobody killed, by the test's own name for the recipe."""
    return {}


def test_a_run_writes_what_it_promises(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    result = train(make_recipe(), run_folder=tmp_path / "run", quiet=True)
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "samples/step_000006.jsonl"} <= names
    assert {"graft/graft.json", "graft/graft.safetensors", "graft/README.md"} <= names
    assert {f"checkpoints/step_000012/{name}" for name in ("state.json", "MANIFEST.json")} <= names
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["event"] == "val"] == [4, 8, 12]
    assert {"caption", "loss", "lr", "grad_norm", "captions_per_s", "seconds"} <= set(rows[0])
    assert {"loss", "blind"} <= set(next(row for row in rows if row["event"] == "val"))
    assert (result.steps, result.sentences, result.stopped_by, result.frozen_unchanged) == (12, 48, "steps", True)
    json.dumps(result.to_json())


def test_training_lowers_the_loss(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    result = train(make_recipe(train={"max_steps": 40, "eval_every": 10}), run_folder=tmp_path, quiet=True)
    values = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["event"] == "val"]
    assert result.best["value"] == min(values)
    assert values[-1] < values[0] - 0.2


VARIANTS = {
    "plain": {},
    "accumulating": {"train": {"accumulate": 2, "batch_size": 2}},
    "with dropout": {"system": {"mapper": "grid", "grid_side": 1, "rank": 4, "dropout": 0.3}},
    "several epochs": {"data": {"train": {"reader": "scenes", "split": "train", "limit": 10}}},
    "two datasets": {"data": {"also": [{"reader": "scenes", "split": "val", "limit": 12, "factor": 0.2}]}},
}


KILLS = [
    ("plain", 1), ("plain", 5), ("plain", 11), ("accumulating", 9), ("with dropout", 5), ("several epochs", 7),
    ("two datasets", 9),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "at"), KILLS)
def test_a_killed_and_resumed_run_ends_in_the_same_bytes(
    variant: str, at: int, make_recipe: RecipeMaker, tmp_path: Path, untouched: dict[str, dict[str, str]]
) -> None:
    recipe = make_recipe(**VARIANTS[variant])
    if variant not in untouched:
        train(recipe, run_folder=tmp_path / "whole", quiet=True)
        untouched[variant] = end_state(tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", at)
    torch.manual_seed(99)  # a new process starts with other random states
    train(make_recipe(**VARIANTS[variant], run={"workers": 0}), run_folder=tmp_path / "killed", quiet=True)
    assert end_state(tmp_path / "killed") == untouched[variant]


def test_a_step_sums_a_batch_of_every_dataset_times_its_factor(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = make_recipe(**VARIANTS["two datasets"], train={"max_steps": 1, "clip_norm": 0.0})
    with prepare(recipe, tmp_path / "by hand", resume=False, quiet=True) as run:
        batches = [run.source.next_batch() for _ in range(2)]
        assert run.source.factors == (1.0, 0.2)
        assert batches[0] != batches[1]
        losses = [run.system.train().losses(batch)["caption"] for batch in batches]
        total = losses[0] + 0.2 * losses[1]
        total.backward()
        grads = [parameter.grad.flatten() for _, parameter in run.system.trainable()]
    train(recipe, run_folder=tmp_path / "run", quiet=True)
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(float(torch.cat(grads).norm()), rel=1e-4)


@pytest.mark.parametrize("factor", [0, -1, "a", True])
def test_a_dataset_without_a_factor_above_zero_is_refused(
    factor: Any, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    also = [{"reader": "scenes", "split": "val", "limit": 8, "factor": factor}]
    with pytest.raises(ConfigError, match=r"data\.also: expected a factor above 0"):
        train(make_recipe(data={"also": also}), run_folder=tmp_path, quiet=True)


def test_the_comparison_can_fail(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(make_recipe(train={"seed": seed}), run_folder=tmp_path / str(seed), quiet=True)
    left, right = end_state(tmp_path / "0"), end_state(tmp_path / "1")
    assert all(left[name] != right[name] for name in left)


def test_a_finished_run_is_not_trained_again(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    first = train(make_recipe(), run_folder=tmp_path, quiet=True)
    before = end_state(tmp_path)
    second = train(make_recipe(), run_folder=tmp_path, resume=True, quiet=True)
    assert end_state(tmp_path) == before
    assert (second.steps, second.loss, second.best) == (first.steps, first.loss, first.best)


def test_another_recipe_in_the_same_folder_is_refused_with_the_keys(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train(make_recipe(), run_folder=tmp_path, quiet=True)
    other = make_recipe(train={"lr": 1e-3}, evaluate={"limit": 3})
    with pytest.raises(ConfigError, match=r"different: evaluate\.limit, train\.lr"):
        train(other, run_folder=tmp_path, quiet=True)


def test_insisting_on_a_checkpoint_where_there_is_none_is_a_usage_error(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="found none; leave out --resume"):
        train(make_recipe(), run_folder=tmp_path, resume=True, quiet=True)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    make_recipe: RecipeMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], untouched: dict[str, dict[str, str]]
) -> None:
    train(make_recipe(), run_folder=tmp_path / "whole", quiet=True)
    train_until_killed(make_recipe(), tmp_path / "run", 9)
    newest = step_folders(tmp_path / "run" / "checkpoints")[-1] / "trainable.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    train(make_recipe(), run_folder=tmp_path / "run", quiet=True)
    assert "use another checkpoint" in capsys.readouterr().err
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def test_data_that_changed_since_the_checkpoint_are_refused(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train_until_killed(make_recipe(), tmp_path, 5)
    with prepare(make_recipe(), tmp_path, resume=True, quiet=True) as run:
        run.source._digest = "other"  # type: ignore[attr-defined]
        with pytest.raises(CheckpointError, match="the training data has changed"):
            trainer_of(run).run()


def test_other_frozen_parts_than_the_checkpoints_are_refused(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train_until_killed(make_recipe(), tmp_path, 5)
    with prepare(make_recipe(), tmp_path, resume=True, quiet=True) as run:
        with torch.no_grad():
            run.system.lm.tokens.weight.add_(1)  # type: ignore[union-attr, operator]
        with pytest.raises(CheckpointError, match="trained over other frozen parts"):
            trainer_of(run).run()


def test_a_run_without_a_graft_loads_its_best_checkpoint_over_its_own_parts_only(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    result = train(make_recipe(), run_folder=tmp_path, quiet=True)
    finished = grafts.load(tmp_path).trainable_state()
    shutil.rmtree(tmp_path / "graft")
    unfinished = grafts.load(tmp_path).trainable_state()
    assert all(torch.allclose(finished[name], tensor, atol=1e-2) for name, tensor in unfinished.items())
    folder = step_folder(tmp_path / "checkpoints", result.best["step"])
    state = json.loads((folder / "state.json").read_text())
    state["frozen_parts"]["lm"]["fingerprint"] = "0" * 64
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="MANIFEST"):
        grafts.load(tmp_path)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["state.json"] = {"bytes": (folder / "state.json").stat().st_size, "sha256": sha256(folder / "state.json")}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="frozen part 'lm'"):
        grafts.load(tmp_path)


def test_a_frozen_weight_that_moves_stops_the_run(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    with prepare(make_recipe(), tmp_path, resume=False, quiet=True) as run:
        weight = run.system.lm.tokens.weight  # type: ignore[union-attr]
        run.system.connector.register_forward_hook(lambda *_: move(weight))  # type: ignore[union-attr, operator]
        with pytest.raises(FrozenError, match=r"'lm\.tokens\.weight' has changed"):
            trainer_of(run).run()


def move(weight: torch.Tensor) -> None:
    weight.data.add_(1e-3)


def test_two_processes_cannot_share_a_folder(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    with (
        prepare(make_recipe(), tmp_path, resume=False, quiet=True),
        pytest.raises(ConfigError, match="another process is training here"),
    ):
        train(make_recipe(), run_folder=tmp_path, quiet=True)


def test_a_stop_signal_saves_a_checkpoint_and_the_run_goes_on_from_it(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    class Signalled(KilledSource):
        def next_batch(self) -> list[Sentence]:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return self.inner.next_batch()

    recipe = make_recipe(train={"save_every": 0, "eval_every": 0})
    handler = signal.getsignal(signal.SIGINT)
    with prepare(recipe, tmp_path / "run", resume=False, quiet=True) as run:
        trainer = trainer_of(replace(run, source=Signalled(run.source, 7)))
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in step_folders(tmp_path / "run" / "checkpoints")] == ["step_000007"]
    train(recipe, run_folder=tmp_path / "run", resume=True, quiet=True)
    train(recipe, run_folder=tmp_path / "whole", quiet=True)
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def test_a_time_budget_ends_a_run_and_its_rate_reaches_the_end(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = make_recipe(train={"max_steps": None, "max_minutes": 0.02, "eval_every": 0, "save_every": 0})
    result = train(recipe, run_folder=tmp_path, quiet=True)
    assert result.stopped_by == "time"
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["event"] == "train"]
    assert rows[-1]["lr"] < rows[0]["lr"]


def test_a_run_by_the_clock_goes_on_with_a_larger_budget(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    def recipe(minutes: float | None) -> Recipe:
        return make_recipe(
            train={"max_steps": None if minutes else 3, "max_minutes": minutes, "eval_every": 0, "save_every": 0}
        )

    first = train(recipe(0.01), run_folder=tmp_path / "run", quiet=True)
    assert train(recipe(0.01), run_folder=tmp_path / "run", resume=True, quiet=True).steps == first.steps
    second = train(recipe(0.03), run_folder=tmp_path / "run", resume=True, quiet=True)
    assert second.steps > first.steps
    assert second.seconds == pytest.approx(1.8, abs=0.5)
    rates = {row["step"]: row["lr"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in row}
    assert sorted(rates) == list(range(1, second.steps + 1))
    assert rates[first.steps + 1] == pytest.approx(1e-2 * (1 + math.cos(math.pi / 3)) / 2, rel=0.2)
    assert "max_minutes: 0.03" in (tmp_path / "run" / "recipe.yaml").read_text()
    train(recipe(None), run_folder=tmp_path / "steps", quiet=True)
    with pytest.raises(ConfigError, match=r"train\.max_minutes may change only where the run began with one"):
        train(
            make_recipe(train={"max_steps": 3, "max_minutes": 1.0, "eval_every": 0, "save_every": 0}),
            run_folder=tmp_path / "steps",
            quiet=True,
        )


def test_a_validation_that_is_no_number_is_never_the_best(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([float("nan"), float("-inf"), 2.0, float("nan"), 1.0, float("inf")])
    monkeypatch.setattr(Validation, "losses", lambda self, *, blind_too: {"loss": next(values)})
    recipe = make_recipe(train={"eval_every": 2, "max_steps": 12}, evaluate={"blind": False})
    result = train(recipe, run_folder=tmp_path, quiet=True)
    assert (result.best["step"], result.best["value"]) == (10, 1.0)
    assert capsys.readouterr().err.count("which is never the best") == 4


def test_a_run_whose_validations_are_no_numbers_still_ends_with_a_graft(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "losses", lambda self, *, blind_too: {"loss": float("nan")})
    result = train(make_recipe(evaluate={"blind": False}), run_folder=tmp_path, quiet=True)
    assert result.best == {}
    grafts.load(result.graft)


def test_patience_ends_a_run_and_the_best_weights_are_exported(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = make_recipe(
        train={"lr": 1e-30, "max_steps": 60, "eval_every": 2, "clip_norm": 0},
        evaluate={"patience": 2, "sample_every": 0},
        run={"graft_dtype": "float32", "keep_last": 1},
    )
    result = train(recipe, run_folder=tmp_path, quiet=True)
    assert result.stopped_by == "patience"
    assert result.best["step"] == result.steps - 4
    names = [path.name for path in step_folders(tmp_path / "checkpoints")]
    assert names == [f"step_{result.best['step']:06d}", f"step_{result.steps:06d}"]
    best = (tmp_path / "checkpoints" / names[0] / "trainable.safetensors").read_bytes()
    assert (tmp_path / "graft" / "graft.safetensors").read_bytes() == best


def test_the_last_weights_are_exported_where_the_recipe_says_so(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(metric: str) -> TrainResult:
        values = iter([1.0, 2.0])
        monkeypatch.setattr(Validation, "value", lambda *_: next(values))
        tables = {"train": {"max_steps": 8, "eval_every": 4}, "evaluate": {"best_metric": metric}}
        return train(make_recipe(**tables), run_folder=tmp_path / metric, quiet=True)

    best, last = run("loss"), run("last")
    assert (best.best["step"], last.best["step"]) == (4, 8)
    found = load_file(tmp_path / "last" / "checkpoints" / "step_000008" / "trainable.safetensors")
    own = grafts.load(last.graft).trainable_state()
    assert all(torch.allclose(own[name], found[name], rtol=1e-3, atol=1e-3) for name in own)


def test_patience_cannot_wait_for_the_last_weights(make_recipe: RecipeMaker) -> None:
    with pytest.raises(ConfigError, match="patience: expected 0 where best_metric is 'last'"):
        make_recipe(evaluate={"best_metric": "last", "patience": 2})


def test_a_loss_that_is_no_longer_finite_is_told_with_what_to_do(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    with prepare(make_recipe(), tmp_path, resume=False, quiet=True) as run:
        with torch.no_grad():
            next(iter(run.system.trainable()))[1].fill_(float("nan"))
        with pytest.raises(GraftError, match=r"step 1: expected finite losses .* lower train\.lr"):
            trainer_of(run).run()


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"train": {"loss_weights": {"captoin": 1.0}}}, "unknown loss 'captoin'; did you mean 'caption'"),
        ({"evaluate": {"best_metric": "cider"}}, "evaluate.best_metric: unknown loss 'cider'"),
        ({"data": {"train": {"reader": "scenes", "lmit": 3}}}, "lmit"),
        ({"system": {"name": "clipcap", "mapper": "mpl"}}, "system.mapper"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_in_words(
    tables: dict[str, Any], sentence: str, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(make_recipe(**tables), run_folder=tmp_path, quiet=True)
    assert sentence in str(caught.value)


def test_weights_scale_the_loss_that_is_minimised(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train(make_recipe(train={"loss_weights": {"caption": 0.5}, "max_steps": 1}), run_folder=tmp_path, quiet=True)
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert row["loss"] == pytest.approx(row["caption"] / 2)


def test_a_blind_run_never_opens_a_picture(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = make_recipe(data={"blind": True, "cache_features": False})
    with prepare(recipe, tmp_path, resume=False, quiet=True) as run:
        encoder = run.system.encoders["image"]
        seen: list[Any] = []
        plain = encoder.preprocess
        encoder.preprocess = lambda media: (seen.extend(media), plain(media))[1]  # type: ignore[method-assign]
        trainer_of(run).run()
    assert len(seen) > 40
    assert all(part.source.getextrema() == ((0, 0),) * 3 for part in seen)
