"""Any language model with any encoder: every pair of families through `graft doctor`, tiny and random.

    python benchmarks/pairs.py [--json] [--system clipcap]

Each pair is built, trained for two steps and asked once, with pictures as embeddings (even pairs) or as a per-layer
prefix (odd pairs). "Ours" is the number of pairs that pass, "theirs" the number of pairs there are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from graftlm.doctor import DoctorReport, dry_run_parts
from graftlm.encoders.huggingface import HuggingFaceEncoder
from graftlm.errors import GraftError
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.systems.base import Parts, system_class
from tests.language_models import FAMILIES as LM_FAMILIES
from tests.language_models import tiny_model, tiny_tokenizer
from tests.parity.test_encoder_families import FAMILIES as ENCODER_FAMILIES


def encoders() -> dict[str, HuggingFaceEncoder]:
    """One tiny vision network of each family."""
    torch.manual_seed(0)
    made = {name: (family[0](), family[1]()) for name, family in ENCODER_FAMILIES.items()}
    return {name: HuggingFaceEncoder.from_model(model, processor) for name, (model, processor) in made.items()}


def matrix(system: str = "clipcap") -> Iterator[tuple[str, str, DoctorReport | GraftError]]:
    """Language model, encoder and report or refusal, pair by pair."""
    cls = system_class(system)
    seeing = encoders()
    for row, family in enumerate(LM_FAMILIES):
        lm = HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer())
        for column, (name, encoder) in enumerate(seeing.items()):
            options = {"inject": "prefix"} if "inject" in cls.Config.model_fields and (row + column) % 2 else {}
            config = cls.Config(lm=family, encoder=name, **options)
            try:
                yield family, name, dry_run_parts(Parts(lm, {"image": encoder}), cls, config)
            except GraftError as error:
                yield family, name, error


def is_passed(report: DoctorReport | GraftError) -> bool:
    """Whether a pair can be trained: losses fall, frozen parts stay, memory reaches every layer."""
    if isinstance(report, GraftError):
        return False
    falls = report.losses[2] < report.losses[0]
    return falls and report.frozen_unchanged and report.sites["memory"] == "yes"


def main() -> None:
    """Prints the table, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", default="clipcap")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start, passed, tried = time.perf_counter(), 0, 0
    failures: list[str] = []
    for family, encoder, report in matrix(given.system):
        tried += 1
        if is_passed(report):
            passed += 1
        else:
            failures.append(f"{encoder} -> {family}: {report}")
        print(f"{encoder:<20}{family:<12}{'passes' if is_passed(report) else 'FAILS'}", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(f"{passed} of {tried} pairs pass ({len(LM_FAMILIES)} language models x {len(ENCODER_FAMILIES)} encoders)")
    print("\n".join(failures), end="\n" if failures else "")
    if given.json:
        row = {"name": "pairs", "ours": passed, "theirs": tried, "ratio": passed / tried, "unit": "pairs that pass"}
        print(json.dumps({**row, "seconds": round(seconds, 1), "failures": failures}))
    sys.exit(0 if passed == tried else 1)


if __name__ == "__main__":
    main()
