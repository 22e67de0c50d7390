"""Training speed: GraftLM's way and the plain way, side by side, on the same recipe.

    python benchmarks/training_speed.py [--json] [--seconds 60] [--minutes 15] [--data ../shared/data/flickr8k]

Both train recipes/clipcap_flickr8k.yaml: the same frozen pair in the same precision, the same connector from the same
seed, the same optimiser, rate and batch size. The plain way draws shuffled batches, decodes and encodes its photos in
every step, pads on the right, and calls transformers' own forward with labels, which computes all logits. Ours is
`graftlm.train` itself: cached features, bucketed batches, logits at targets only.

`ours`, `theirs`: captions per second, measured in turns of `--seconds`. With `--minutes M` the plain way then trains
for M minutes and is validated, and ours trains a third of that and is validated: `reached` says whether it has come at
least as far. In the race alone ours starts its prefix from words, with a shorter
warm-up, which the plain way has no means for (`--ours-set`, an empty one takes it away). Validation counts on no clock.
Encoding the photos once is told apart as `minutes_features`; it is shared by all later runs.

`peak_memory_gb`: of a fresh process that trains one way alone for `--seconds`, loading and features of ours included.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from memory import peaks_of, report_peak
from plain import transformers_model
from torch import Tensor

from graftlm.config import Recipe
from graftlm.data.ledger import Ledger
from graftlm.data.readers import read_all
from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import TokenBatch
from graftlm.encoders.base import Encoder
from graftlm.lm.base import KVPrefix
from graftlm.systems.base import System
from graftlm.train.log import read_metrics
from graftlm.train.optim import adamw, schedule_of, set_lr
from graftlm.train.setup import build_system, open_data, read_recipe
from graftlm.train.source import with_targets
from graftlm.train.trainer import Trainer
from graftlm.train.validate import TOTAL, Validation

ROOT = Path(__file__).resolve().parents[1]

NEVER = 10**9
"""Steps between validations, of which then only the last one comes: one on the way would count on the clock."""

OURS = ("system.start_text='A short description of what the photo shows:'", "train.warmup_steps=30")


class PlainWay:
    """What one writes first: transformers' model, all logits, photos encoded in every step."""

    def __init__(self, recipe: Recipe, samples: Sequence[Sample]) -> None:
        self.recipe = recipe
        self.system = build_system(recipe).train()
        config = self.system.config
        self.model: Any = transformers_model(config.lm, config.precision).requires_grad_(False)
        self.optimizer = adamw(self.system.trainable(), recipe.train)
        self.parameters = [parameter for _, parameter in self.system.trainable()]
        self.steps = 0
        self.train_s = 0.0
        self._batches = shuffled(samples, recipe.train.batch_size, recipe.train.seed)

    def leave_ours(self) -> None:
        """Lets go of our own language model: one model is all that the plain way holds."""
        lm: Any = self.system.lm
        lm.model = self.model

    def train(self, seconds: float, budget_s: float | None = None) -> float:
        """Trains for so long; captions per second. The rate follows `budget_s`."""
        table = self.recipe.train.model_copy(update={"max_minutes": (budget_s or 3600.0) / 60, "max_steps": None})
        schedule = schedule_of(table, None)
        start, first = self.train_s, self.steps
        while self.train_s - start < seconds:
            begin = time.perf_counter()
            set_lr(self.optimizer, schedule.lr(self.steps, self.train_s))
            self.step(next(self._batches))
            self.train_s += time.perf_counter() - begin
        return (self.steps - first) * table.batch_size / (self.train_s - start)

    def step(self, sentences: list[Sentence]) -> float:
        """One optimiser step."""
        loss = self.loss(sentences)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())

    def loss(self, sentences: list[Sentence]) -> Tensor:
        """The model's own loss over full logits."""
        batch = self.system.tokens(sentences)
        encoder = self.system.encoders["image"]
        assert isinstance(encoder, Encoder)
        soft = self.system.connector(encoder.encode(batch.media))  # type: ignore[operator]
        arguments = self._with_prefix(batch, soft) if batch.slots.max() < 0 else self._with_embeds(batch, soft)
        result: Tensor = self.model(labels=batch.labels, **arguments).loss
        return result

    def _with_embeds(self, batch: TokenBatch, soft: Tensor) -> dict[str, Any]:
        embeds = self.model.get_input_embeddings()(batch.ids)  # (B, L, D)
        places = batch.slots >= 0
        flat = soft.reshape(-1, soft.shape[-1]).to(embeds.dtype)[batch.slots[places]]
        return {
            "inputs_embeds": embeds.masked_scatter(places[..., None], flat),
            "attention_mask": batch.mask.long(),
            "use_cache": False,
        }

    def _with_prefix(self, batch: TokenBatch, soft: Tensor) -> dict[str, Any]:
        from transformers import DynamicCache

        mask = torch.ones(soft.shape[:2], dtype=torch.bool)
        prefix = KVPrefix.from_tokens(soft, mask, self.system.lm.prefix_geometry)
        cache, dtype = DynamicCache(), self.model.dtype
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            cache.update(keys.to(dtype), values.to(dtype), layer)
        return {
            "inputs_embeds": self.model.get_input_embeddings()(batch.ids),
            "attention_mask": torch.cat([mask, batch.mask], dim=1).long(),
            "past_key_values": cache,
        }


def shuffled(samples: Sequence[Sample], size: int, seed: int) -> Iterator[list[Sentence]]:
    """Endless batches in plain random order."""
    order = random.Random(seed)
    indices = list(range(len(samples)))
    while True:
        order.shuffle(indices)
        for start in range(0, len(indices) - size + 1, size):
            yield [samples[index].sentence for index in indices[start : start + size]]


class OurWay:
    """`graftlm.train` as a user runs it, guard, logs and checkpoints included."""

    def __init__(self, recipe: Recipe, place: Path) -> None:
        self.recipe = recipe
        self.place = place
        self.runs = 0

    def train(self, minutes: float, **train_table: Any) -> Path:
        """Trains a fresh connector for so long; the run's folder."""
        self.runs += 1
        folder = self.place / f"run_{self.runs}"
        table = self.recipe.train.model_copy(update={"max_minutes": minutes, "max_steps": None, **train_table})
        evaluate = self.recipe.evaluate.model_copy(update={"sample_every": 0, "blind": False})
        run = self.recipe.run.model_copy(update={"log_every": 1})
        recipe = self.recipe.model_copy(update={"train": table, "evaluate": evaluate, "run": run})
        system = build_system(recipe)
        source, validation = open_data(system, recipe, Ledger(), quiet=True)
        folder.mkdir(parents=True)
        Trainer(system, recipe, folder, source, validation if table.eval_every else None, quiet=True).run()
        return folder


def rate_of(run: Path) -> float:
    """Captions per second of the steps after the first row, which warms up."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["event"] == "train"]
    rates = [row["captions_per_s"] for row in rows[1:] or rows]
    return len(rates) / sum(1 / rate for rate in rates)


def limited(recipe: Recipe, photos: int | None) -> Recipe:
    """The recipe over the first photos only: a quick look, not a measurement."""
    if photos is None:
        return recipe
    data = recipe.data.model_copy(
        update={
            "train": {**recipe.data.train, "limit": photos},
            "val": {**(recipe.data.val or recipe.data.train), "limit": max(8, photos // 8)},
        }
    )
    return recipe.model_copy(update={"data": data})


def recipe_of(options: argparse.Namespace, more: Iterable[str] = ()) -> Recipe:
    """The recipe over the given data; `more`: changes after all others."""
    changes = [f"data.{part}.path={options.data}" for part in ("train", "val")]
    return limited(read_recipe(options.recipe, [*changes, *options.overrides, *more]), options.photos)


def run_one(options: argparse.Namespace, place: Path) -> None:
    """One way alone, for its memory; `features` only sees to it that they are there."""
    recipe = recipe_of(options)
    if options.memory == "features":
        open_data(build_system(recipe), recipe, Ledger(), quiet=options.json)
    elif options.memory == "ours":
        OurWay(recipe, place).train(options.seconds / 60, eval_every=0, save_every=0)
    else:
        plain = PlainWay(recipe, with_targets(read_all(recipe.data.train, Ledger()), "data.train"))
        plain.leave_ours()
        plain.train(options.seconds)
    report_peak()


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Rates in turns, then the race to a loss."""
    recipe = recipe_of(options)
    begin = time.perf_counter()
    reader = build_system(recipe)
    open_data(reader, recipe, Ledger(), quiet=options.json)
    features_s = time.perf_counter() - begin
    plain = PlainWay(recipe, with_targets(read_all(recipe.data.train, Ledger()), "data.train"))
    ours = OurWay(recipe, place)
    plain.train(1.0)  # kernels and files are warm for both
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(options.turns):
        rates["theirs"].append(plain.train(options.seconds))
        run = ours.train(options.seconds / 60, eval_every=0, save_every=0)
        rates["ours"].append(rate_of(run))
    means = {name: sum(values) / len(values) for name, values in rates.items()}
    result = {
        "name": "training_speed",
        "ours": round(means["ours"], 2),
        "theirs": round(means["theirs"], 2),
        "ratio": round(means["ours"] / means["theirs"], 2),
        "unit": "captions/s",
        "loss_difference": round(difference_at_start(recipe, plain), 4),
        "minutes_features": round(features_s / 60, 2),
        "peak_memory_gb": options.peaks,
    }
    if not options.minutes:
        return result
    started = recipe_of(options, OURS if options.ours is None else filter(None, options.ours))
    return {**result, **race(recipe, OurWay(started, place / "race"), reader, options.minutes)}


def difference_at_start(recipe: Recipe, plain: PlainWay) -> float:
    """Largest difference of both ways' losses over the same batches and weights: they compute the same."""
    plain.system.eval()
    samples = with_targets(read_all({**recipe.data.train, "limit": 8}, Ledger()), "data.train")
    sentences = [sample.sentence for sample in samples[: recipe.train.batch_size]]
    with torch.no_grad():
        theirs = float(plain.loss(sentences))
        ours = float(sum(plain.system.losses(sentences).values()))
    plain.system.train()
    return abs(ours - theirs)


def race(recipe: Recipe, ours: OurWay, reader: System, minutes: float) -> dict[str, Any]:
    """The plain way for `minutes`, then ours towards the same validation loss."""
    samples = with_targets(read_all(recipe.data.train, Ledger()), "data.train")
    plain = PlainWay(recipe, samples)
    plain.train(minutes * 60, budget_s=minutes * 60)
    held_out = with_targets(read_all(recipe.data.val or {}, Ledger()), "data.val")
    for modality, encoder in reader.encoders.items():
        plain.system.encoders[modality] = encoder  # cached features: validation is on no clock
    loss = Validation(plain.system, held_out, recipe).losses(blind_too=False)[TOTAL]
    run = ours.train(minutes / 3, eval_every=NEVER, save_every=0)
    (row,) = [row for row in read_metrics(run / "metrics.jsonl") if row["event"] == "val"]  # the end's
    return {
        "loss_plain": round(loss, 4),
        "minutes_plain": round(plain.train_s / 60, 2),
        "minutes_ours": round(row["train_seconds"] / 60, 2),
        "loss_ours": round(row[TOTAL], 4),
        "reached": row[TOTAL] <= loss,
        "steps_plain": plain.steps,
        "steps_ours": row["step"],
    }


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--seconds", type=float, default=60, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of each way")
    parser.add_argument("--minutes", type=float, default=0, help="of the plain way in the race to a loss; 0: no race")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "flickr8k"), help="Flickr8k's folder")
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "clipcap_flickr8k.yaml"))
    parser.add_argument("--photos", type=int, help="only so many photos, for a quick look")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--ours-set", dest="ours", action="append", help="as --set, for our race alone")
    parser.add_argument(
        "--memory", choices=("features", "ours", "theirs"), help="run this alone, print its peak memory"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if options.memory:
            run_one(options, Path(place))
            return 0
        peaks = peaks_of(__file__, ("features", "ours", "theirs"), sys.argv[1:])
        options.peaks = {way: peaks[way] for way in ("ours", "theirs")}
        result = measure(options, Path(place))
    if not options.json:
        print(f"ours    {result['ours']:8.2f} captions/s\nplain   {result['theirs']:8.2f} captions/s")
        print(f"peak memory: ours {options.peaks['ours']:.2f} GB, plain {options.peaks['theirs']:.2f} GB")
        if options.minutes:
            print(f"plain: loss {result['loss_plain']} after {result['minutes_plain']} minutes of training")
            print(f"ours:  loss {result['loss_ours']} after {result['minutes_ours']} minutes")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
