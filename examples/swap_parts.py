"""The same recipe over other frozen parts: any language model with any encoder.

python examples/swap_parts.py                                        # the recipe's own pair
python examples/swap_parts.py --lm gpt2 --encoder openai/clip-vit-base-patch32
python examples/swap_parts.py --lm path/to/a/model --steps 300
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graftlm.train.setup import read_recipe
from graftlm.train.trainer import train

RECIPE = Path(__file__).parents[1] / "recipes" / "demo_scenes.yaml"


def main() -> None:
    """Trains for some steps on generated scenes and prints what the pair came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", default="smollm2-135m", help="bundled name, hub id or local path")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="bundled name, hub id or local path")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=400, help="pictures to train on")
    parser.add_argument("--runs", type=Path, default=Path("runs/swap_parts"))
    arguments = parser.parse_args()

    overrides = [
        f"system.lm={arguments.lm}",
        f"system.encoder={arguments.encoder}",
        f"data.train.limit={arguments.scenes}",
        f"train.max_steps={arguments.steps}",
    ]
    name = f"{arguments.lm}+{arguments.encoder}".replace("/", "_")
    result = train(read_recipe(RECIPE, overrides), run_folder=arguments.runs / name)
    print(
        f"{name}: {result.trainable_parameters:,} trained parameters, {result.captions_per_s:.0f} captions/s, "
        f"validation loss {result.loss:.3f}, blind {result.blind_loss:.3f}, frozen parts unchanged"
    )


if __name__ == "__main__":
    main()
