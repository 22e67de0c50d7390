"""The loop: steps, validations, checkpoints, an end; resumed after a kill as if nothing had happened.

Everything a step depends on is in the checkpoint (weights, optimiser, random states, place in the data, clock), and
a step writes nothing after its checkpoint. So a run that was killed and resumed ends in the same bytes on a CPU, as
long as steps alone bound it; with ``max_minutes`` the rate follows the clock, and metrics.jsonl tells which rate a
step had. Such a run may go on with another ``max_minutes``: the rate is then what the new budget has at that point.
"""

from __future__ import annotations

import json
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object  # type: ignore[import-untyped]

from graftlm.config import Recipe
from graftlm.data.sentence import Sentence
from graftlm.errors import CheckpointError, GraftError
from graftlm.storage import copy_into, newest_step, replace_file, step_folder, step_folders
from graftlm.systems.base import System
from graftlm.train.alarm import Alarm, answers_alike, no_blind_gap
from graftlm.train.checkpoint import (
    Checkpoint,
    prune,
    random_state,
    read_checkpoint,
    restore_random_state,
    write_checkpoint,
)
from graftlm.train.guard import FrozenGuard
from graftlm.train.log import Bar, MetricsLog, open_tracker
from graftlm.train.optim import adamw, load_optimizer_tensors, optimizer_tensors, schedule_of, set_lr
from graftlm.train.processes import accelerator
from graftlm.train.progress import Progress, TrainResult
from graftlm.train.source import Source, blind
from graftlm.train.validate import LAST, TOTAL, Validation, weighted_total

ALARMS_FROM_PROGRESS = 0.1
"""Part of the run after which an alarm means something."""


class Trainer:
    """One run of one system in one folder.

    Args:
        recipe: with all defaults; folder: the run's, `recipe.yaml` is the caller's to write
        source: training batches over all processes, `train.batch_size` sentences each per process
        validation: None for a run without
        quiet: no bar; warnings are shown all the same
    """

    def __init__(
        self,
        system: System,
        recipe: Recipe,
        folder: Path,
        source: Source,
        validation: Validation | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self._accelerator = accelerator()
        self._is_main = self._accelerator.is_main_process
        self._system = system.to(self._accelerator.device)
        self._recipe = recipe
        self._folder = folder
        self._source = source
        self._validation = validation
        self._names = {id(parameter): name for name, parameter in system.trainable()}
        self._parameters = [parameter for _, parameter in system.trainable()]
        self._optimizer = adamw(system.trainable(), recipe.train)
        batches = source.batches_per_epoch
        self._schedule = schedule_of(recipe.train, batches // recipe.train.accumulate if batches else None)
        self._state = Progress()
        self._session_start = 0.0
        self._earlier_s = 0.0
        self._stop = threading.Event()
        self._window: list[dict[str, float]] = []
        self._bar = Bar("train", 1.0, quiet=quiet or not self._is_main)
        self._log = MetricsLog(None)

    def run(self) -> TrainResult:
        """Trains to the end and exports the best weights.

        Raises: KeyboardInterrupt after a checkpoint when SIGINT or SIGTERM came; FrozenError; CheckpointError when
            the folder's checkpoints cannot be continued; GraftError when the loss is no longer finite.
        """
        self._system.train()
        guard = FrozenGuard.of(self._system)
        resumed = self._restore(guard)
        self._log = self._open_log(resumed)
        self._earlier_s, self._session_start = self._state.elapsed_s, time.perf_counter()
        with self._signals(), self._bar:
            while not self._state.stopped_by:
                self._advance(guard)
        return self._finish(guard)

    def _advance(self, guard: FrozenGuard) -> None:
        """One optimiser step and all that is due after it; the checkpoint comes last."""
        state, recipe = self._state, self._recipe
        self._tick()
        if not self._is_over():
            self._step()
            self._tick()
        over = self._is_over()
        self._log_steps(over)
        improved = self._is_due(recipe.train.eval_every, over) and self._validate()
        if recipe.evaluate.sample_every and self._is_due(recipe.evaluate.sample_every, over):
            self._show_answers()
        if over:
            state.stopped_by = "steps" if state.step == self._schedule.total_steps else "time"
        elif recipe.evaluate.patience and state.stale >= recipe.evaluate.patience:
            state.stopped_by = "patience"
        self._tick()
        interrupted = self._stop.is_set() and not state.stopped_by
        if state.stopped_by:
            self._log.write("end", state.step, stopped_by=state.stopped_by, seconds=state.elapsed_s)
        if improved or interrupted or state.stopped_by or self._is_due(recipe.train.save_every, False):
            guard.check(self._system)
            self._save(guard)
        if interrupted:
            raise KeyboardInterrupt

    def _tick(self) -> None:
        """Reads the clock and the stop flag; the main process's count for all."""
        now = self._earlier_s + time.perf_counter() - self._session_start
        stop = float(self._stop.is_set())
        if self._accelerator.num_processes > 1:
            both = broadcast(torch.tensor([now, stop], dtype=torch.float32, device=self._accelerator.device))
            now, stop = float(both[0]), float(both[1])
        self._state.elapsed_s = now
        if stop:
            self._stop.set()

    def _is_over(self) -> bool:
        return self._schedule.is_over(self._state.step, self._state.elapsed_s)

    def _is_due(self, every: int, over: bool) -> bool:
        return over or (every > 0 and self._state.step > 0 and self._state.step % every == 0)

    def _step(self) -> None:
        start = time.perf_counter()
        state, table = self._state, self._recipe.train
        lr = self._schedule.lr(state.step, state.elapsed_s)
        set_lr(self._optimizer, lr)
        sums: dict[str, float] = {}
        seen = 0
        for factor in self._source.factors * table.accumulate:
            batch = self._source.next_batch()
            seen += len(batch)
            losses = self._system.losses(self._share(batch))
            total = weighted_total(losses, table.loss_weights)
            (total * factor / table.accumulate).backward()  # type: ignore[no-untyped-call]
            for name, loss in {**losses, TOTAL: total}.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) * factor / table.accumulate
        self._average_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, table.clip_norm or float("inf")))
        self._check_finite(sums, norm)
        self._optimizer.step()
        self._system.after_step()
        self._optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.sentences += seen
        seconds = time.perf_counter() - start
        state.train_s += seconds
        self._window.append({**sums, "lr": lr, "grad_norm": norm, "step_s": seconds, "sentences": seen})

    def _share(self, batch: list[Sentence]) -> list[Sentence]:
        """This process's part of a batch over all processes."""
        mine = batch[self._accelerator.process_index :: self._accelerator.num_processes]
        return [blind(sentence) for sentence in mine] if self._recipe.data.blind else mine

    def _average_gradients(self) -> None:
        """The mean over processes, in one message: the trained part is small."""
        if self._accelerator.num_processes == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        mean = self._accelerator.reduce(torch.cat([grad.reshape(-1) for grad in grads]), reduction="mean")
        pieces = torch.split(mean, [parameter.numel() for parameter in self._parameters])
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def _check_finite(self, losses: dict[str, float], norm: float) -> None:
        if all(abs(value) < float("inf") for value in (*losses.values(), norm)):
            return
        raise GraftError(
            f"step {self._state.step + 1}: expected finite losses and gradients, found {losses} and norm {norm}; "
            "lower train.lr or set train.clip_norm; the checkpoints written so far are whole"
        )

    def _log_steps(self, over: bool) -> None:
        """Moves the bar; writes the means since the last row when one is due."""
        state, window = self._state, self._window
        if not window:
            return
        note = f"step {state.step} loss {window[-1][TOTAL]:.3f}"
        self._bar.move(self._schedule.progress(state.step, state.elapsed_s), note)
        if state.step % self._recipe.run.log_every and not over:
            return
        means = {name: sum(row[name] for row in window) / len(window) for name in window[0]}
        rate = means.pop("sentences") / means.pop("step_s")
        values = {**means, "lr": window[-1]["lr"], "captions_per_s": rate, "seconds": state.elapsed_s}
        self._log.write("train", state.step, **values, **self._system.figures())
        window.clear()

    def _validate(self) -> bool:
        """Validates once per step; whether it is the best validation so far."""
        state, validation = self._state, self._validation
        if validation is None or state.validated == state.step:
            return False
        losses = validation.losses(blind_too=self._recipe.evaluate.blind)
        metric = self._recipe.evaluate.best_metric
        value = validation.value(losses, metric)
        improved = math.isfinite(value) and (metric == LAST or not state.best or value < state.best["value"])
        if not math.isfinite(value) and self._is_main:
            self._bar.warn(
                f"step {state.step}: the validation loss is {value}, which is never the best; lower train.lr"
            )
        if improved:
            state.best = {"metric": metric, "value": value, "step": state.step, "losses": losses}
        state.last, state.validated = losses, state.step
        state.stale = 0 if improved else state.stale + 1
        self._log.write("val", state.step, **losses, seconds=state.elapsed_s, train_seconds=state.train_s)
        beside = f" (blind {losses['blind']:.3f})" if "blind" in losses else ""
        note = ", best so far" if improved else ""
        self._bar.say(f"step {state.step}: validation loss {losses[TOTAL]:.3f}{beside}{note}")
        if "blind" in losses:
            self._raise_alarm(no_blind_gap(losses[TOTAL], losses["blind"]))
        return improved

    def _show_answers(self) -> None:
        if self._validation is None or not self._is_main or not self._system.writes:
            return
        rows = self._validation.answers()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(self._folder / "samples" / f"step_{self._state.step:06d}.jsonl", lines.encode())
        if not self._recipe.data.blind:
            self._raise_alarm(answers_alike([row["answer"] for row in rows]))

    def _raise_alarm(self, alarm: Alarm | None) -> None:
        state = self._state
        if alarm is None or self._schedule.progress(state.step, state.elapsed_s) < ALARMS_FROM_PROGRESS:
            return
        self._log.write("alarm", state.step, **asdict(alarm))
        if self._is_main:
            self._bar.warn(f"step {state.step}: {alarm.message}")

    def _open_log(self, resumed: bool) -> MetricsLog:
        if not self._is_main:
            return MetricsLog(None)
        tracker = open_tracker(self._recipe.run.report_to, self._folder, self._recipe.to_dict())
        step = self._state.step if resumed else None
        return MetricsLog(self._folder / "metrics.jsonl", resume_step=step, tracker=tracker)

    def _save(self, guard: FrozenGuard) -> None:
        states = gather_object([random_state()])
        if self._is_main:
            state = {
                "progress": self._state.to_json(),
                "source": self._source.state(),
                "random": states,
                "frozen": guard.fingerprint,
                "frozen_parts": {role: {"fingerprint": own} for role, own in self._system.fingerprints().items()},
            }
            tensors = optimizer_tensors(self._optimizer, self._names)
            folder = self._folder / "checkpoints"
            write_checkpoint(folder, self._state.step, Checkpoint(self._system.trainable_state(), tensors, state))
            prune(folder, self._recipe.run.keep_last, self._state.best.get("step"))
        self._accelerator.wait_for_everyone()

    def _restore(self, guard: FrozenGuard) -> bool:
        """Goes to the newest whole checkpoint, or seeds a new run. Raises: CheckpointError."""
        folder = self._folder / "checkpoints"
        found, damaged = newest_step(folder)
        for sentence in damaged if self._is_main else []:
            self._bar.warn(sentence)
        if found is None and step_folders(folder):
            raise CheckpointError(f"{folder}: expected a whole checkpoint, found none; start a new run folder")
        rank = self._accelerator.process_index
        if found is None:
            _seed_all(self._recipe.train.seed + 1_000_003 * rank)
            return False
        checkpoint = read_checkpoint(found)
        before, now = str(checkpoint.state.get("frozen")), guard.fingerprint
        if before != now:
            raise CheckpointError(
                f"{found}: it was trained over other frozen parts (expected {before[:12]}, found {now[:12]}); "
                "use the same backbones or a new run folder"
            )
        self._system.make_room(checkpoint.trainable)
        copy_into(self._system.trainable_state(), checkpoint.trainable, str(found / "trainable.safetensors"))
        load_optimizer_tensors(self._optimizer, checkpoint.optimizer, self._names)
        self._state = Progress.from_json(checkpoint.state.get("progress", {}))
        if self._state.stopped_by == "time" and not self._is_over():
            self._state.stopped_by = ""  # a larger train.max_minutes
        self._source.restore(checkpoint.state.get("source", {}))
        states = checkpoint.state.get("random", [])
        if rank < len(states):
            restore_random_state(states[rank])
        else:
            _seed_all(self._recipe.train.seed + 1_000_003 * rank)
        self._bar.say(f"going on from step {self._state.step}")
        return True

    def _finish(self, guard: FrozenGuard) -> TrainResult:
        """Puts the best weights into the system and exports them."""
        from graftlm.grafts import save, training_of

        state = self._state
        best = step_folder(self._folder / "checkpoints", state.best.get("step", state.step))
        if state.best and best.is_dir():
            tensors = read_checkpoint(best).trainable
            copy_into(self._system.trainable_state(), tensors, str(best / "trainable.safetensors"))
        self._system.eval()
        guard.check(self._system)
        result = TrainResult(
            folder=self._folder,
            graft=self._folder / "graft",
            steps=state.step,
            sentences=state.sentences,
            seconds=state.elapsed_s,
            captions_per_s=state.sentences / max(state.train_s, 1e-9),
            stopped_by=state.stopped_by,
            best=state.best,
            loss=state.last.get(TOTAL),
            blind_loss=state.last.get("blind"),
            trainable_parameters=sum(parameter.numel() for parameter in self._parameters),
            frozen_unchanged=True,
            frozen_fingerprint=guard.fingerprint,
            guard_s=guard.seconds,
        )
        if self._is_main:
            summary = {key: value for key, value in result.to_json().items() if key not in ("folder", "graft")}
            specs = (self._recipe.data.train, *self._recipe.data.also)
            summary["datasets"] = list(dict.fromkeys(Path(str(spec.get("path", "unnamed"))).name for spec in specs))
            summary["train"] = self._recipe.to_dict()["train"]
            if self._recipe.system.only:
                summary["only"] = self._recipe.system.only
            if self._recipe.system.start:
                summary["start"] = training_of(self._recipe.system.start)
            save(self._system, result.graft, training=summary, dtype=self._recipe.run.graft_dtype)
        self._accelerator.wait_for_everyone()
        return result

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop after the step; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.getsignal(kind) for kind in kinds}

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop.set()
            signal.signal(number, before[signal.Signals(number)])

        for kind in kinds:
            signal.signal(kind, ask)
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def train(
    recipe: Recipe, *, run_folder: str | Path | None = None, resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Runs a recipe in its folder, going on from the newest checkpoint there.

    `recipe`: as `read_recipe` gives it; `resume`: insist on a checkpoint; `quiet`: no bars.
    Raises: ConfigError when the folder belongs to another recipe; and what `Trainer.run` raises.
    """
    from graftlm.train.setup import prepare

    with prepare(recipe, run_folder, resume=resume, quiet=quiet) as run:
        return Trainer(run.system, run.recipe, run.folder, run.source, run.validation, quiet=quiet).run()
