"""Kill -9 at random points, resume, and compare the end with a run that nobody killed, byte by byte.

    python benchmarks/resume.py [--json] [--kills 10] [--seed 0] [--stand-in]

Killed are: the building of the feature cache, training in the middle of a step, the writing of checkpoints, and the
conversion of the packaged language model (with --stand-in, or where the package is absent, a small conversion of the
same way of writing). Training runs over the toy models on generated scenes, each session with another number of
workers. "Ours" counts the kills after which the end state was identical, "theirs" all kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from graftlm import backbones
from graftlm.features import CachedEncoder
from graftlm.lm import huggingface
from graftlm.storage import step_folders, write_tensors
from graftlm.train.log import read_metrics
from graftlm.train.setup import complete_recipe
from graftlm.train.trainer import train

LM_NAME = "smollm2-135m"
TIMED = {"seconds", "train_seconds", "captions_per_s"}
PATIENCE_S = 300.0


def recipe(workers: int, scenes: int, steps: int) -> Any:
    """A run of a few seconds over the toys, with dropout, several epochs and many checkpoints."""
    return complete_recipe(
        {
            "system": {
                "name": "clipcap",
                "lm": "toy",
                "encoder": "toy",
                "precision": "float32",
                "mapper": "grid",
                "grid_side": 1,
                "rank": 64,
                "dropout": 0.2,
            },
            "data": {
                "train": {"reader": "scenes", "split": "train", "limit": scenes},
                "val": {"reader": "scenes", "split": "val", "limit": 16},
            },
            "train": {"lr": 3e-3, "batch_size": 8, "max_steps": steps, "eval_every": 60, "save_every": 7},
            "evaluate": {"sample_every": 60, "num_samples": 2, "max_tokens": 6},
            "run": {"workers": workers, "threads": 1, "log_every": 1},
        }
    )


def run_training(home: Path, folder: Path, workers: int, scenes: int, steps: int) -> None:
    """One session, in a process of its own."""
    os.environ["GRAFTLM_HOME"] = str(home)
    train(recipe(workers, scenes, steps), run_folder=folder, quiet=True)


def run_conversion(home: Path, stand_in: bool) -> None:
    """Converts the packaged language model, in a process of its own."""
    os.environ["GRAFTLM_HOME"] = str(home)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the process's own, to its end)
    if stand_in:
        backbones._packaged_file = lambda name, packaged: Path(__file__)  # type: ignore[assignment]
        huggingface.convert_gguf = _small_conversion
    backbones._converted(LM_NAME)


def _small_conversion(source: Path, folder: Path, name: str) -> str:
    for number in range(10):
        weights = torch.randn(200_000, generator=torch.Generator().manual_seed(number))
        write_tensors(folder / f"model-{number}.safetensors", {"w": weights})
        time.sleep(0.1)
    return "0" * 64


class Killer:
    """Starts processes, kills them at chosen moments and counts.

    The parent runs no torch operation, so that its children may be forked: only the first start pays for imports.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kills: dict[str, int] = {}
        self._context = multiprocessing.get_context("fork")

    def finish(self, target: Callable[..., None], *arguments: Any) -> None:
        """Runs a process to its end."""
        process = self._context.Process(target=target, args=arguments)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{target.__name__} ended with {process.exitcode}")

    def kill(
        self, kind: str, is_time: Callable[[], bool], delay_s: float, target: Callable[..., None], *arguments: Any
    ) -> bool:
        """Starts a process and kills it up to `delay_s` after `is_time` first holds; False when it ended before."""
        process = self._context.Process(target=target, args=arguments)
        process.start()
        _wait(process, is_time)
        time.sleep(self.random.uniform(0, delay_s))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        self.kills[kind] = self.kills.get(kind, 0) + killed
        return killed


def _wait(process: BaseProcess, is_time: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while process.is_alive() and not is_time():
        if time.monotonic() > end:
            raise SystemExit("the moment to kill did not come; the machine may be too busy")
        time.sleep(0.0005)


def last_step(folder: Path) -> int:
    """The step of the newest row."""
    return max((row["step"] for row in read_metrics(folder / "metrics.jsonl")), default=0)


def end_state(home: Path, folder: Path) -> dict[str, str]:
    """Everything that must be equal to the byte; of the metrics all but times."""
    last = step_folders(folder / "checkpoints")[-1]
    paths = [last / "trainable.safetensors", last / "optimizer.safetensors", folder / "graft" / "graft.safetensors"]
    paths += sorted((folder / "samples").glob("*.jsonl"))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    rows = [{key: row[key] for key in row if key not in TIMED} for row in read_metrics(folder / "metrics.jsonl")]
    found["metrics"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    found["features"] = CachedEncoder(backbones.load_encoder("toy"), home / "features").store.digest()
    return found


def converted_state(home: Path) -> dict[str, str]:
    """Digest of every converted file."""
    paths = sorted((home / "backbones").glob(f"{LM_NAME}@*/*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def kill_training(killer: Killer, kills: int, home: Path, folder: Path, scenes: int, steps: int) -> None:
    """Cache first, then steps and checkpoints in turn; every session has another number of workers."""
    store = home / "features"
    num_cache = max(1, kills // 5)
    for number in range(num_cache):
        before = sum(path.stat().st_size for path in store.glob("*/index.bin"))
        killer.kill(
            "cache",
            lambda before=before: sum(path.stat().st_size for path in store.glob("*/index.bin")) > before,  # type: ignore[misc]
            0.2,
            run_training,
            *(home, folder, 1 + number % 3, scenes, steps),
        )
    for number in range(kills - num_cache):
        arguments = (home, folder, number % 4, scenes, steps)
        if number % 3 == 1:
            killer.kill("checkpoint", lambda: _is_writing(folder), 0.004, run_training, *arguments)
        else:
            before = last_step(folder)
            killer.kill(
                "training",
                lambda before=before: last_step(folder) > before,  # type: ignore[misc]
                0.5,
                run_training,
                *arguments,
            )


def _is_writing(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".tmp_step_*"))


def kill_conversion(killer: Killer, kills: int, home: Path, stand_in: bool) -> None:
    """Kills at any moment from the temporary folder on; where the conversion was quicker, sooner and again."""
    for _ in range(kills):
        delay_s = 0.8 if stand_in else 4.0
        while True:
            before = _temporary_folders(home)
            is_time = lambda before=before: bool(_temporary_folders(home) - before)  # type: ignore[misc]  # noqa: E731
            if killer.kill("conversion", is_time, delay_s, run_conversion, home, stand_in):
                break
            shutil.rmtree(home / "backbones")  # it was done before the kill
            delay_s /= 2


def _temporary_folders(home: Path) -> set[Path]:
    return {path for path in (home / "backbones").glob(".tmp_*") if path.is_dir()}


def measure(kills: int, seed: int, stand_in: bool, place: Path) -> dict[str, Any]:
    """All kills; what was killed and whether the ends are the same."""
    start = time.perf_counter()
    killer = Killer(seed)
    conversions = max(1, kills // 5)
    scenes, steps = 60 + 40 * kills, 60 + 30 * kills
    homes = {name: place / name / "home" for name in ("whole", "killed")}
    runs = {name: place / name / "run" for name in homes}
    killer.finish(run_conversion, homes["whole"], stand_in)
    kill_conversion(killer, conversions, homes["killed"], stand_in)
    killer.finish(run_conversion, homes["killed"], stand_in)
    killer.finish(run_training, homes["whole"], runs["whole"], 2, scenes, steps)
    kill_training(killer, kills - conversions, homes["killed"], runs["killed"], scenes, steps)
    killer.finish(run_training, homes["killed"], runs["killed"], 3, scenes, steps)
    ends = {name: {**end_state(homes[name], runs[name]), **converted_state(homes[name])} for name in homes}
    different = sorted(key for key in ends["whole"] if ends["whole"][key] != ends["killed"].get(key))
    total = sum(killer.kills.values())
    same = ends["whole"] == ends["killed"]
    return {
        "name": "resume",
        "ours": total if same else 0,
        "theirs": total,
        "ratio": 1.0 if same and total else 0.0,
        "unit": "kills with a bit-identical end",
        "kills": killer.kills,
        "different": different,
        "compared": len(ends["whole"]),
        "conversion": "stand-in" if stand_in else LM_NAME,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Runs the benchmark; 1 when an end differs or a kill was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--kills", type=int, default=10, help="kills in all, at least 3")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stand-in", action="store_true", help="convert a small stand-in for the language model")
    options = parser.parse_args()
    stand_in = options.stand_in or not _is_packaged()
    with tempfile.TemporaryDirectory() as place:
        result = measure(max(3, options.kills), options.seed, stand_in, Path(place))
    if not options.json:
        print(f"{'killed while':<12} kills")
        for kind, count in result["kills"].items():
            print(f"{kind:<12} {count}")
        print(f"{result['compared']} files and logs compared, different: {result['different'] or 'none'}")
    print(json.dumps(result))
    return 0 if result["ratio"] == 1.0 and result["theirs"] >= max(3, options.kills) else 1


def _is_packaged() -> bool:
    import importlib.util

    return importlib.util.find_spec(backbones.PACKAGED_LMS[LM_NAME].module) is not None


if __name__ == "__main__":
    raise SystemExit(main())
