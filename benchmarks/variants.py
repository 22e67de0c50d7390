"""The variants of Frozen and ClipCap side by side: equal captions, one table.

    python benchmarks/variants.py [--json] [--only NAME ...] [--steps 200] [--photos 300] [--runs runs/variants]

Each variant is trained on the same captions in the same order (Flickr8k's train split, batches of 16, seed 0) by
`graft train`, then captions the same photos of the val split by `graft evaluate`: greedy, with its blind control. A
variant that is finished in `--runs` is not trained again, one that was stopped goes on.

The papers: Frozen (arXiv:2106.13884, table 1: frozen above train-blind above finetuned above scratch, in answering
questions) and ClipCap (arXiv:2111.09734, table 1D: a fine-tuned language model with an MLP, a frozen one with a
transformer, a frozen one with an MLP). Rates are the ones of `VARIANTS`, not searched for. `minutes` is what the
training took here, which also tells what a variant costs. `blind` of train-blind is its proper score: it learnt from
black pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_EMBEDS = ("system.inject=embeds", "system.dropout=0", "train.lr=5e-4")
_FLOAT32 = ("system.precision=float32",)

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frozen": ("frozen", ("train.lr=1e-3",)),
    "frozen, train-blind": ("frozen", ("train.lr=1e-3", "data.blind=true")),
    "frozen, finetuned": ("frozen", (*_FLOAT32, "system.lm_training=finetuned", "train.lr=1e-4")),
    "frozen, scratch": ("frozen", (*_FLOAT32, "system.lm_training=scratch", "train.lr=3e-4")),
    "clipcap, MLP": ("clipcap", (*_EMBEDS, "system.mapper=mlp")),
    "clipcap, transformer": ("clipcap", (*_EMBEDS, "system.mapper=transformer")),
    "clipcap, MLP, LoRA": ("clipcap", (*_EMBEDS, "system.mapper=mlp", "system.lm_training=lora")),
    "clipcap, MLP, finetuned": (
        "clipcap",
        (*_EMBEDS, *_FLOAT32, "system.mapper=mlp", "system.lm_training=finetuned", "train.lr=1e-4"),
    ),
    "clipcap, grid prefix (ours)": ("clipcap", ("system.dropout=0",)),
}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One variant's row."""
    recipe, changes = VARIANTS[name]
    run = Path(options.runs) / name.replace(",", "").replace(" ", "-").replace("(", "").replace(")", "")
    table = (
        *(f"data.{part}.path={options.data}" for part in ("train", "val")),
        *("train.max_minutes=null", f"train.max_steps={options.steps}", "train.batch_size=16", "train.warmup_steps=20"),
        *(f"train.eval_every={options.steps}", "train.save_every=50", "evaluate.limit=100", "evaluate.sample_every=0"),
    )
    overrides = [part for change in (*table, *changes) for part in ("--set", change)]
    recipe_path = str(ROOT / "recipes" / f"{recipe}_flickr8k.yaml")
    trained = graft("train", recipe_path, *overrides, "--run-folder", str(run), "--quiet")
    data = ("--data", options.data, "--split", "val", "--limit", str(options.photos))
    score = graft("evaluate", str(run), "captioning", *data, "--beam", "1", "--controls", "blind")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if row["event"] == "val"]
    return {
        "n": score["n"],
        "metrics": {key: score["metrics"][key] for key in ("CIDEr", "BLEU-4")},
        "intervals": {key: score["intervals"][key] for key in ("CIDEr", "BLEU-4")},
        "controls": {"blind": {key: score["controls"]["blind"][key] for key in ("CIDEr", "BLEU-4")}},
        "loss": round(losses[-1]["loss"], 3),
        "loss_blind": round(losses[-1].get("blind", losses[-1]["loss"]), 3),
        "steps": trained["steps"],
        "minutes": round(losses[-1]["train_seconds"] / 60, 1),
    }


def graft(*arguments: str) -> dict[str, Any]:
    """The JSON a verb prints, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "graftlm", *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these variants")
    parser.add_argument("--steps", type=int, default=200, help="of 16 captions")
    parser.add_argument("--photos", type=int, default=300, help="of the val split, to caption")
    parser.add_argument("--runs", default="runs/variants", help="where the runs are kept")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "flickr8k"), help="Flickr8k's folder")
    options = parser.parse_args()
    rows = {}
    for name in options.only or VARIANTS:
        rows[name] = row = measure(name, options)
        if not options.json:
            blind = row["controls"]["blind"]["CIDEr"]
            print(
                f"{name:28} CIDEr {row['metrics']['CIDEr']:5.1f}  blind {blind:5.1f}  loss {row['loss']:.3f}",
                flush=True,
            )
    best = max(rows, key=lambda name: rows[name]["metrics"]["CIDEr"])
    ours, theirs = (rows.get(name, rows[best])["metrics"]["CIDEr"] for name in (list(VARIANTS)[-1], "clipcap, MLP"))
    result = {"name": "variants", "ours": ours, "theirs": theirs, "ratio": round(ours / max(theirs, 0.1), 2)}
    print(json.dumps({**result, "unit": "CIDEr", "split": "val", "seed": 0, "variants": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
