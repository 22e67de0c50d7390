"""Caption metrics without Java: equal to coco-caption's pipeline, and how much quicker.

    python benchmarks/caption_metrics.py [--json] [--data ../shared/data/caption_metrics_check]

Both score the released MAGIC predictions on COCO (4,982 photos) and Flickr30k (1,000): tokenisation, BLEU-1..4,
ROUGE-L and CIDEr. "Theirs" is pycocoevalcap with the Java tokenizer; METEOR and SPICE are left out on both sides.
`max_difference` is the largest absolute difference in percentage points over the corpus scores and over the scores
of every single photo.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from graftlm.evaluate.metrics import captions, java

SETS = {
    "COCO": ("magic_mscoco_refs_and_predictions.json", (56.8, 35.8, 21.4, 12.9, 39.9, 49.3)),
    "Flickr30k": ("magic_flickr30k_refs_and_predictions.json", (44.5, 24.1, 12.4, 6.4, 31.6, 20.4)),
}
NAMES = (*captions.BLEU_NAMES, "ROUGE-L", "CIDEr")


@dataclass(frozen=True)
class Timed:
    """Scores in percent, corpus and per photo, and the seconds they took."""

    corpus: dict[str, float]
    photos: dict[str, Any]
    seconds: float


def ours(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Timed:
    """GraftLM's metrics."""
    start = time.perf_counter()
    found = captions.score(predictions, references)
    return Timed(found.corpus, dict(found.samples), time.perf_counter() - start)


def theirs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Timed:
    """pycocoevalcap's metrics with the Java tokenizer, as its COCOEvalCap runs them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(sys.stderr):
        start = time.perf_counter()
        accepted = PTBTokenizer().tokenize({i: [{"caption": t} for t in group] for i, group in enumerate(references)})
        spoken = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(predictions)})
        bleu, bleus = Bleu(4).compute_score(accepted, spoken)
        rouge, rouges = Rouge().compute_score(accepted, spoken)
        cider, ciders = Cider().compute_score(accepted, spoken)
        seconds = time.perf_counter() - start
    corpus = dict(zip(NAMES, (100 * np.array([*bleu, rouge, cider])).tolist(), strict=True))
    photos = dict(zip(NAMES, (100 * np.array(values) for values in (*bleus, rouges, ciders)), strict=True))
    return Timed(corpus, photos, seconds)


def difference(one: Timed, other: Timed) -> float:
    """Largest absolute difference in percentage points, corpus and photos."""
    corpus = max(abs(one.corpus[name] - other.corpus[name]) for name in NAMES)
    photos = max(float(np.abs(one.photos[name] - other.photos[name]).max()) for name in NAMES)
    return max(corpus, photos)


def quickest(score: Callable[..., Timed], *data: Any, times: int) -> Timed:
    """The quickest of several runs: the machine is shared."""
    return min((score(*data) for _ in range(times)), key=lambda timed: timed.seconds)


def measure(data: Path, times: int) -> dict[str, Any]:
    """Both sides on both sets."""
    why = java.missing()
    result: dict[str, Any] = {"name": "caption_metrics", "unit": "s", "ours": 0.0, "theirs": None, "ratio": None}
    result |= {"max_difference": None, "max_difference_published": 0.0, "scores": {}}
    for name, (file, published) in SETS.items():
        rows = json.loads((data / file).read_text(encoding="utf-8"))
        pair = [row["prediction"] for row in rows], [row["captions"] for row in rows]
        mine = quickest(ours, *pair, times=times)
        result["ours"] += mine.seconds
        result["scores"][name] = {metric: round(mine.corpus[metric], 2) for metric in NAMES}
        off = max(abs(mine.corpus[metric] - value) for metric, value in zip(NAMES, published, strict=True))
        result["max_difference_published"] = max(result["max_difference_published"], round(off, 3))
        if not why:
            other = quickest(theirs, *pair, times=times)
            result["theirs"] = (result["theirs"] or 0.0) + other.seconds
            result["max_difference"] = max(result["max_difference"] or 0.0, difference(mine, other))
    if why:
        result["note"] = f"the Java pipeline was not measured: it {why}"
    else:
        result["ratio"] = result["theirs"] / result["ours"]
    return result


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':<10} " + " ".join(f"{name:>8}" for name in NAMES)]
    for name, scores in result["scores"].items():
        lines.append(f"{name:<10} " + " ".join(f"{scores[metric]:8.2f}" for metric in NAMES))
        published = SETS[name][1]
        lines.append(f"{'published':<10} " + " ".join(f"{value:8.1f}" for value in published))
    lines.append(f"ours {result['ours']:.2f} s")
    if result["ratio"] is None:
        lines.append(result["note"])
    else:
        lines.append(
            f"pycocoevalcap with Java {result['theirs']:.2f} s: {result['ratio']:.1f} times as long; "
            f"largest difference {result['max_difference']:.2g} points"
        )
    return "\n".join(lines)


def main() -> int:
    """Prints the table on stderr with --json, and one JSON object as the last line of stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "caption_metrics_check"
    parser.add_argument("--data", type=Path, default=default, help="folder of the released predictions")
    parser.add_argument("--times", type=int, default=2, help="runs of each side; the quickest counts")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object on stdout")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"{arguments.data}: expected the folder with {SETS['COCO'][0]}, found none; give it with --data")
        return 1
    result = measure(arguments.data, max(1, arguments.times))
    print(table(result), file=sys.stderr if arguments.json else sys.stdout)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
