"""Many queries behind one few-shot prompt: the prompt computed once, against whole prompts.

    python benchmarks/fewshot_cache.py [--json] [--data DIR] [--shots 8] [--queries 96] [--batch 32] [--threads 2]

Photos of Flickr8k with a caption each, then a photo to be captioned, through SmolLM2-135M and a Flamingo of random
weights with open gates: what it writes is noise, what it costs is not. "Ours" is `System.respond_after` an opening,
whose reading is counted; "theirs" is `System.respond` to the same prompts laid out whole. Photos are encoded
beforehand for both. The two run in turn (A B A B); a side's figure is the median of its rounds. An answer ends at
`--max-tokens`, about as long as a caption, on both sides. `equal_answers`: the share of answers that are the same; in
bfloat16 a near tie may fall otherwise, with `--precision float32` all are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from graftlm.backbones import load_parts
from graftlm.config import load_recipe
from graftlm.data.readers import read_all
from graftlm.data.sentence import Sentence, Text
from graftlm.features import CachedEncoder
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Parts, System, system_class
from graftlm.systems.flamingo import Flamingo, FlamingoConfig

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Output:"


def random_flamingo(precision: str) -> Flamingo:
    """The recipe's system, its gates open, its photos encoded once."""
    recipe = load_recipe(
        ROOT / "recipes" / "flamingo_flickr8k.yaml", system_fields=lambda name: system_class(name).Config
    )
    config = FlamingoConfig.model_validate({**recipe.system.options(), "precision": precision})
    parts = load_parts(config)
    torch.manual_seed(0)
    encoders = {kind: CachedEncoder(encoder) for kind, encoder in parts.encoders.items()}
    system = Flamingo.build(config, Parts(parts.lm, encoders)).eval()
    with torch.no_grad():
        for name, parameter in system.trainable():
            if name.endswith("_gate"):
                parameter.fill_(0.3)
    return system


def sentences(data: str, shots: int, queries: int) -> tuple[Sentence, list[Sentence]]:
    """The worked examples, and as many photos to caption."""
    spec = {"path": data, "split": "val", "per": "media", "limit": shots + queries}
    samples = read_all(spec)
    photos = [sample.sentence.media()[0] for sample in samples]
    shown = Sentence()
    for photo, sample in zip(photos[:shots], samples, strict=False):
        shown += Sentence.of(photo, f"{PROMPT} {sample.references[0]}")
    return shown, [Sentence.of(photo, PROMPT, Text("", target=True)) for photo in photos[shots:]]


def cached(system: System, shown: Sentence, queries: list[Sentence], decoding: Decoding, size: int) -> list[str]:
    """Answers behind an opening, which is read anew in every round."""
    opening = system.opening(shown)
    found: list[Sentence] = []
    for start in range(0, len(queries), size):
        found += system.respond_after(opening, queries[start : start + size], decoding)
    return [answer.text() for answer in found]


def whole(system: System, shown: Sentence, queries: list[Sentence], decoding: Decoding, size: int) -> list[str]:
    """Answers to whole prompts."""
    found: list[Sentence] = []
    for start in range(0, len(queries), size):
        found += system.respond([shown + query for query in queries[start : start + size]], decoding)
    return [answer.text() for answer in found]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "flickr8k"))
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--queries", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    system = random_flamingo(options.precision)
    shown, queries = sentences(options.data, options.shots, options.queries)
    decoding = Decoding(max_tokens=options.max_tokens, min_tokens=options.max_tokens)
    arguments = (system, shown, queries, decoding, options.batch)
    sides: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: cached(*arguments),
        "theirs": lambda: whole(*arguments),
    }
    system.respond(queries[:2], decoding)  # weights are laid out, photos encoded
    system.perceive([photo for sentence in (shown, *queries) for photo in sentence.media()])
    answers: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, run in sides.items():
            start = time.perf_counter()
            answers[side] = run()
            seconds[side].append(time.perf_counter() - start)
    report(options, seconds, answers, int(system.inputs([shown]).mask.sum()))


def report(
    options: argparse.Namespace, seconds: dict[str, list[float]], answers: dict[str, list[str]], positions: int
) -> None:
    """The table, and the object of the contract."""
    rate = {side: options.queries / statistics.median(values) for side, values in seconds.items()}
    equal = sum(one == two for one, two in zip(answers["ours"], answers["theirs"], strict=True)) / options.queries
    result = {
        "name": "fewshot_cache",
        "ours": round(rate["ours"], 2),
        "theirs": round(rate["theirs"], 2),
        "ratio": round(rate["ours"] / rate["theirs"], 2),
        "unit": "answers/s",
        "shots": options.shots,
        "positions_shared": positions,
        "equal_answers": round(equal, 3),
        "queries": options.queries,
        "batch": options.batch,
        "max_tokens": options.max_tokens,
        "precision": options.precision,
        "seconds": {side: [round(value, 3) for value in values] for side, values in seconds.items()},
    }
    print(f"{'side':8} {'s (median)':>10} {'answers/s':>10}")
    for side, values in seconds.items():
        print(f"{side:8} {statistics.median(values):10.3f} {rate[side]:10.2f}")
    print(f"ratio {result['ratio']} at {options.shots} shots ({positions} positions), equal answers: {equal:.3f}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
