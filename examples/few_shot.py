"""Few-shot prompting is addition: worked examples and a question are sentences, and sentences can be added.

    python examples/few_shot.py --graft GRAFT

A graft trained on captions alone follows examples poorly; the controls of `graft evaluate` say how poorly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import graftlm
from graftlm import Image, Sentence, Text

PHOTOS = Path(__file__).parent / "photos"


def shot(photo: str, answer: str) -> Sentence:
    """A worked example: picture, question and answer. Nothing in it is a target."""
    return Sentence.of(Image(PHOTOS / photo), f"Question: What is this? Answer: {answer}\n")


def main() -> None:
    """Asks about a photo with none, one and two worked examples before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graft", default="clipcap-smollm2", help="ready-made name, folder, run or hub id")
    arguments = parser.parse_args()

    shots = [shot("coffee.jpg", "a cup of coffee"), shot("rocket.jpg", "a rocket")]
    question = Sentence.of(Image(PHOTOS / "cat.jpg"), "Question: What is this? Answer:", Text("", target=True))
    prompts = [sum(shots[:count], start=Sentence()) + question for count in range(len(shots) + 1)]

    system = graftlm.load(arguments.graft)
    for count, answer in enumerate(system.respond(prompts, graftlm.Decoding(max_tokens=12, stop=("\n",)))):
        print(f"{count} examples: {answer.text().strip()}")


if __name__ == "__main__":
    main()
