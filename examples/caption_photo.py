"""Captions photos with a graft.

python examples/caption_photo.py                       # a sample photo, with the ready-made graft
python examples/caption_photo.py *.jpg --graft runs/my_graft
"""

from __future__ import annotations

import argparse
from pathlib import Path

import graftlm

SAMPLE = Path(__file__).parent / "photos" / "cat.jpg"


def main() -> None:
    """One line of path and caption for every photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", default=[str(SAMPLE)])
    parser.add_argument("--graft", default="clipcap-smollm2", help="ready-made name, folder, run or hub id")
    arguments = parser.parse_args()

    system = graftlm.load(arguments.graft)
    # A sentence is what is said: here a picture, and words that the model has to write.
    sentences = [graftlm.Sentence.of(graftlm.Image(path), graftlm.Text("", target=True)) for path in arguments.photos]
    answers = system.respond(sentences, graftlm.Decoding(num_beams=3))
    for path, answer in zip(arguments.photos, answers, strict=True):
        print(f"{path}\t{answer.text().strip()}")


if __name__ == "__main__":
    main()
