"""The released MAGIC predictions give the published scores; coco-caption's sample gives its documented token count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.evaluate.metrics import captions
from graftlm.evaluate.metrics.ptb import tokenize

pytestmark = pytest.mark.realdata

PUBLISHED = [
    ("magic_mscoco_refs_and_predictions.json", [56.8, 35.8, 21.4, 12.9, 39.9, 49.3]),
    ("magic_flickr30k_refs_and_predictions.json", [44.5, 24.1, 12.4, 6.4, 31.6, 20.4]),
]


@pytest.mark.parametrize(("file", "published"), PUBLISHED)
def test_released_predictions_give_the_published_scores(shared_data: Path, file: str, published: list[float]) -> None:
    rows = json.loads((shared_data / "caption_metrics_check" / file).read_text("utf-8"))
    found = captions.score([row["prediction"] for row in rows], [row["captions"] for row in rows]).corpus
    names = (*captions.BLEU_NAMES, "ROUGE-L", "CIDEr")
    assert [found[name] for name in names] == pytest.approx(published, abs=0.05)


def test_the_documented_number_of_tokens_comes_out(shared_data: Path) -> None:
    file = shared_data / "caption_metrics_check" / "captions_val2014_fakecap_results.json"
    rows = json.loads(file.read_text("utf-8"))
    assert sum(len(tokenize(row["caption"])) for row in rows) == 9893
