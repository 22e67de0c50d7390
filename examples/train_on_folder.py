"""Trains a graft on a folder of your own photos and captions, then captions one of them.

The folder holds photos and a metadata.jsonl, one line each: {"file_name": "1.jpg", "text": "A dog on a beach."}

    python examples/train_on_folder.py my_photos --minutes 10
"""

from __future__ import annotations

import argparse

import graftlm
from graftlm.data.readers import read_all
from graftlm.train.setup import complete_recipe
from graftlm.train.trainer import train


def main() -> None:
    """Trains, says what came out, and shows one answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photos and metadata.jsonl")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--lm", default="smollm2-135m", help="bundled name, hub id or local path")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="bundled name, hub id or local path")
    parser.add_argument("--run", default="runs/my_photos", help="where the run goes; the same folder goes on with it")
    arguments = parser.parse_args()

    # The same five tables as a recipe file; `graft train FILE --print` shows every default.
    system = {"name": "clipcap", "lm": arguments.lm, "encoder": arguments.encoder, "mapper": "grid", "inject": "prefix"}
    data = {"reader": "folder", "path": arguments.folder, "tidy": True}
    schedule = {"lr": 2e-3, "batch_size": 8, "max_minutes": arguments.minutes, "warmup_steps": 20, "eval_every": 0}
    recipe = complete_recipe({"system": system, "data": {"train": data}, "train": schedule})
    result = train(recipe, run_folder=arguments.run)
    print(f"{result.trainable_parameters:,} parameters trained in {result.steps} steps: {result.graft}")

    sample = read_all({**data, "per": "media", "limit": 1})[0]
    answer = graftlm.load(result.graft).respond([sample.sentence], graftlm.Decoding(num_beams=3))[0]
    print(f"{sample.key}\t{answer.text().strip()}\t(you wrote: {sample.references[0]})")


if __name__ == "__main__":
    main()
