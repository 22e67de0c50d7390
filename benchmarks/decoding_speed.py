"""Batched greedy decoding against transformers' own `generate`: same weights, prompts, batch, precision and threads.

    python benchmarks/decoding_speed.py [--json] [--batch 16] [--max-tokens 32] [--rounds 7] [--threads 2]

Sixteen things to describe in one short sentence: prompts of different length whose answers end by themselves, as
captions do (SmolLM2-135M: after 12 to 26 tokens), or at `--max-tokens`. The two run in turn (A B A B),
so that a busy machine disturbs both; a side's figure is the median of its rounds. `theirs` is an untouched model of
transformers with its default attention, fed ids with the padding on the left.
`peak_memory_gb`: of a fresh process that only loads and runs one side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from memory import peaks_of, report_peak
from plain import transformers_model

from graftlm.backbones import load_lm
from graftlm.data.tokenize import Row, TokenBatch, collate
from graftlm.lm.base import LanguageModel
from graftlm.lm.compose import compose
from graftlm.lm.decode import Decoding, decode

PROMPTS = (
    "a cat",
    "a boat on a lake",
    "a red car",
    "two children who play football",
    "a busy street",
    "a cup of coffee",
    "a man on a horse",
    "a bowl of fruit",
    "a girl with a kite",
    "an old bridge",
    "a plane in the sky",
    "a garden in spring",
    "a bird on a branch",
    "a sleeping baby",
    "a woman who reads a book on a bench",
    "a rainy day",
)
# ChatML without the system message of the template.
TURN = "<|im_start|>user\nDescribe {} in one short sentence.<|im_end|>\n<|im_start|>assistant\n"


def batch_of(lm: LanguageModel, rows: int) -> TokenBatch:
    """The prompts as one turn each, about as long as a picture's soft tokens with a question; padded on the right."""
    batch = []
    for row in range(rows):
        ids = lm.tokenizer.encode_template(TURN.format(PROMPTS[row % len(PROMPTS)]))
        batch.append(Row())
        batch[-1].add(ids, target=False, seen=0)
    return collate(batch, pad_id=lm.tokenizer.pad_id, media_tokens=0)


def ours(lm: LanguageModel, batch: TokenBatch, max_tokens: int) -> list[list[int]]:
    """Ids of GraftLM's answers, EOS included."""
    answers = decode(lm, compose(lm, batch), Decoding(max_tokens=max_tokens))
    return [list(row[0].ids) for row in answers]


def theirs(model: Any, lm: LanguageModel, batch: TokenBatch, max_tokens: int) -> list[list[int]]:
    """Ids of transformers' answers, EOS included."""
    length, eos = batch.ids.shape[1], lm.tokenizer.eos_id
    order = torch.argsort(batch.mask.to(torch.int8), dim=1, stable=True)
    found = model.generate(
        input_ids=batch.ids.gather(1, order),
        attention_mask=batch.mask.gather(1, order).long(),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=lm.tokenizer.pad_id,
    )
    rows = found[:, length:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def timed(run: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Seconds and answers of one run."""
    start = time.perf_counter()
    answers = run()
    return time.perf_counter() - start, answers


def plain_model(name: str, precision: str) -> Any:
    """The same weights as transformers loads them, with its default attention."""
    model = transformers_model(name, precision)
    model.generation_config.max_length = None
    # Its parameters stay as they come, with requires_grad: without, PyTorch copies the output matrix once per row.
    return model


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--lm", default="smollm2-135m")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("ours", "theirs"), help="run this side alone and print its peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        run_one(options)
        return
    options.peaks = peaks_of(__file__, ("ours", "theirs"), sys.argv[1:])
    lm = load_lm(options.lm, options.precision)
    lm.requires_grad_(False)
    model = plain_model(options.lm, options.precision)
    batch = batch_of(lm, options.batch)
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "ours": lambda: ours(lm, batch, options.max_tokens),
        "theirs": lambda: theirs(model, lm, batch, options.max_tokens),
    }
    answers = {side: run() for side, run in sides.items()}  # also the warm-up
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, run in sides.items():
            spent, found = timed(run)
            seconds[side].append(spent)
            assert found == answers[side], f"{side}: another answer in a second run"
    report(options, seconds, answers)


def run_one(options: argparse.Namespace) -> None:
    """One side alone, for its memory."""
    lm = load_lm(options.lm, options.precision)
    lm.requires_grad_(False)
    batch = batch_of(lm, options.batch)
    if options.memory == "theirs":
        model = plain_model(options.lm, options.precision)
        lm.model = model  # one model is all that this side holds
    for _ in range(options.rounds):
        if options.memory == "ours":
            ours(lm, batch, options.max_tokens)
        else:
            theirs(model, lm, batch, options.max_tokens)
    report_peak()


def report(options: argparse.Namespace, seconds: dict[str, list[float]], answers: dict[str, list[list[int]]]) -> None:
    """The table, and the object of the contract."""
    tokens = sum(len(row) for row in answers["theirs"])
    median = {side: statistics.median(values) for side, values in seconds.items()}
    speed = {side: sum(len(row) for row in answers[side]) / median[side] for side in median}
    result = {
        "name": "decoding_speed",
        "ours": round(speed["ours"], 1),
        "theirs": round(speed["theirs"], 1),
        "ratio": round(speed["ours"] / speed["theirs"], 3),
        "unit": "tokens/s",
        "equal_tokens": answers["ours"] == answers["theirs"],
        "lm": options.lm,
        "precision": options.precision,
        "peak_memory_gb": options.peaks,
        "batch": options.batch,
        "tokens": tokens,
        "longest": max(len(row) for row in answers["theirs"]),
        "seconds": {side: [round(value, 4) for value in values] for side, values in seconds.items()},
    }
    print(f"{'side':8} {'s (median)':>10} {'tokens/s':>10}")
    for side in ("ours", "theirs"):
        print(f"{side:8} {median[side]:10.3f} {speed[side]:10.1f}")
    print(f"peak memory: ours {options.peaks['ours']:.2f} GB, theirs {options.peaks['theirs']:.2f} GB")
    print(f"ratio {result['ratio']}, equal tokens: {result['equal_tokens']}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
