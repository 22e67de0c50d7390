"""Prompt tuning: GraftLM's way and peft's, side by side, on the same model, data, batches and threads.

    python benchmarks/prompt_tuning_speed.py [--json] [--seconds 60] [--turns 3] [--data ../shared/data/superglue/RTE]

Both train a prompt of `--num-tokens` vectors before sentences of RTE, from the same start, with AdamW at the same rate,
over the same frozen model in the same precision, the same batches in the same order. peft's way is what its guide has:
`get_peft_model` around transformers' model, ids and labels padded on the right, its own loss over all logits. Ours is
what `graft train` does in a step: no logits but the label's, nothing for padding, no gradient of a frozen weight.

`ours`, `theirs`: sentences per second, the median of turns of `--seconds` that follow each other (A B A B).
`loss_difference`: of both over the same batches before the first step; they compute the same.
`peak_memory_gb`: of a fresh process that trains one way alone for `--seconds`, loading included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from memory import peaks_of, report_peak
from plain import transformers_model
from torch import Tensor, nn

from graftlm.backbones import load_parts
from graftlm.config import TrainTable
from graftlm.data.readers import read_all
from graftlm.data.sentence import Sentence
from graftlm.systems.base import System, system_class
from graftlm.train.optim import adamw

ROOT = Path(__file__).resolve().parents[1]


class Way(Protocol):
    """One way to train."""

    def loss(self, sentences: list[Sentence]) -> Tensor:
        """The loss of a batch."""

    def step(self, sentences: list[Sentence]) -> None:
        """One optimiser step."""


class OurWay:
    """The system as the trainer uses it."""

    def __init__(self, system: System, table: TrainTable) -> None:
        self.system = system.train()
        self.parameters = [parameter for _, parameter in system.trainable()]
        self.optimizer = adamw(system.trainable(), table)

    def loss(self, sentences: list[Sentence]) -> Tensor:
        """Cross-entropy of the label words."""
        return self.system.losses(sentences)["label"]

    def step(self, sentences: list[Sentence]) -> None:
        """One optimiser step."""
        move(self.loss(sentences), self.parameters, self.optimizer)


class PeftWay:
    """peft's prompt tuning around transformers' own model, from the same prompt."""

    def __init__(self, system: System, table: TrainTable) -> None:
        from peft import PromptTuningConfig, get_peft_model

        self.system = system
        lm: Any = system.config
        plain = transformers_model(lm.lm, lm.precision)
        prompt: Any = system.prompt
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt.num_tokens)
        self.model: Any = get_peft_model(plain, config)
        weight = self.model.prompt_encoder["default"].embedding.weight
        weight.data = prompt.tokens().detach().clone().float()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=table.lr, weight_decay=table.weight_decay)
        self.model.train()

    def loss(self, sentences: list[Sentence]) -> Tensor:
        """The model's own loss over all logits."""
        batch = self.system.tokens(sentences)
        found: Tensor = self.model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.labels, use_cache=False
        ).loss
        return found

    def step(self, sentences: list[Sentence]) -> None:
        """One optimiser step."""
        move(self.loss(sentences), self.parameters, self.optimizer)


def move(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Gradient, clipping, step."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def fresh_system(options: argparse.Namespace) -> System:
    """The system with a prompt drawn from one seed."""
    cls = system_class("prompt_tuning")
    config = cls.Config.model_validate(
        {"lm": options.lm, "precision": options.precision, "num_tokens": options.num_tokens}
    )
    parts = load_parts(config)
    torch.manual_seed(0)
    return cls.build(config, parts)


def batches(options: argparse.Namespace) -> Iterator[list[Sentence]]:
    """Endless batches in one random order."""
    spec = {"reader": "labelled", "path": options.data, "split": "train", "limit": options.limit}
    sentences = [sample.sentence for sample in read_all({k: v for k, v in spec.items() if v is not None})]
    order = random.Random(0)
    while True:
        order.shuffle(sentences)
        for start in range(0, len(sentences) - options.batch + 1, options.batch):
            yield sentences[start : start + options.batch]


def turn(way: Way, data: Iterator[list[Sentence]], seconds: float) -> float:
    """Sentences per second over whole batches."""
    start, seen = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        batch = next(data)
        way.step(batch)
        seen += len(batch)
    return seen / (time.perf_counter() - start)


def make(side: str, options: argparse.Namespace) -> Way:
    """One way."""
    table = TrainTable(lr=options.lr, max_steps=1)
    system = fresh_system(options)
    return OurWay(system, table) if side == "ours" else PeftWay(system, table)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates in turns, and the difference of the losses at the start."""
    ways = {side: make(side, options) for side in ("theirs", "ours")}
    first = next(batches(options))
    with torch.no_grad():
        starts = {side: float(way.loss(first)) for side, way in ways.items()}
    data = {side: batches(options) for side in ways}
    for side, way in ways.items():
        turn(way, data[side], 1.0)  # kernels are warm for both
    rates: dict[str, list[float]] = {side: [] for side in ways}
    for _ in range(options.turns):
        for side, way in ways.items():
            rates[side].append(turn(way, data[side], options.seconds))
    median = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "name": "prompt_tuning_speed",
        "ours": round(median["ours"], 2),
        "theirs": round(median["theirs"], 2),
        "ratio": round(median["ours"] / median["theirs"], 2),
        "unit": "sentences/s",
        "loss_difference": round(abs(starts["ours"] - starts["theirs"]), 4),
        "lm": options.lm,
        "precision": options.precision,
        "batch": options.batch,
        "num_tokens": options.num_tokens,
        "peak_memory_gb": options.peaks,
        "turns": {side: [round(value, 2) for value in values] for side, values in rates.items()},
    }


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--seconds", type=float, default=60, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of each way")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "superglue" / "RTE"))
    parser.add_argument("--limit", type=int, help="only so many rows, for a quick look")
    parser.add_argument("--lm", default="smollm2-135m")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("ours", "theirs"), help="run this way alone, print its peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        turn(make(options.memory, options), batches(options), options.seconds)
        report_peak()
        return 0
    options.peaks = peaks_of(__file__, ("ours", "theirs"), sys.argv[1:])
    result = measure(options)
    if not options.json:
        print(f"ours  {result['ours']:8.2f} sentences/s\npeft  {result['theirs']:8.2f} sentences/s")
        print(f"peak memory: ours {options.peaks['ours']:.2f} GB, peft {options.peaks['theirs']:.2f} GB")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
