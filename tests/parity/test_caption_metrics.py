"""Equality with coco-caption itself, where Java and pycocoevalcap are found."""

from __future__ import annotations

import importlib
import io
import json
import random
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftlm.evaluate.metrics import captions, java
from graftlm.evaluate.metrics.ptb import tokenize

if java.missing():
    pytest.skip(f"coco-caption {java.missing()}", allow_module_level=True)

SETS = ("magic_flickr30k_refs_and_predictions.json", "magic_mscoco_refs_and_predictions.json")


def java_words(sentences: list[str]) -> list[list[str]]:
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    found = tokenizer.tokenize({number: [{"caption": text}] for number, text in enumerate(sentences)})
    return [found[number][0].split(" ") if found[number][0] else [] for number in range(len(sentences))]


def java_scores(predictions: list[str], references: list[list[str]]) -> tuple[dict[str, float], dict[str, Any]]:
    spoken = {number: [" ".join(tokenize(text))] for number, text in enumerate(predictions)}
    accepted = {number: [" ".join(tokenize(text)) for text in group] for number, group in enumerate(references)}
    corpus: dict[str, float] = {}
    samples: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        bleu, bleus = importlib.import_module("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(accepted, spoken)
        for name, module, scorer in (("ROUGE-L", "rouge.rouge", "Rouge"), ("CIDEr", "cider.cider", "Cider")):
            found = getattr(importlib.import_module(f"pycocoevalcap.{module}"), scorer)()
            corpus[name], samples[name] = found.compute_score(accepted, spoken)
    corpus |= dict(zip(captions.BLEU_NAMES, bleu, strict=True))
    samples |= dict(zip(captions.BLEU_NAMES, bleus, strict=True))
    return corpus, samples


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "caption_metrics_check" / name).read_text("utf-8"))
    return found


def test_every_caption_of_the_real_data_has_the_words_java_gives_it(shared_data: Path) -> None:
    sentences = {
        text for name in SETS for row in rows(shared_data, name) for text in (*row["captions"], row["prediction"])
    }
    with (shared_data / "flickr8k" / "captions.jsonl").open(encoding="utf-8") as file:
        sentences |= {text for line in file for text in json.loads(line)["captions"]}
    ordered = sorted(text.replace("\n", " ").replace("\r", " ") for text in sentences)
    different = [text for text, words in zip(ordered, java_words(ordered), strict=True) if tokenize(text) != words]
    assert different == []


@pytest.mark.parametrize("name", SETS)
def test_scores_of_the_corpus_and_of_every_photo_are_equal(shared_data: Path, name: str) -> None:
    data = rows(shared_data, name)
    predictions, references = [row["prediction"] for row in data], [row["captions"] for row in data]
    found = captions.score(predictions, references)
    corpus, samples = java_scores(predictions, references)
    for metric, value in corpus.items():
        assert found.corpus[metric] == pytest.approx(100 * value, abs=1e-9)
        assert np.abs(found.samples[metric] - 100 * np.array(samples[metric])).max() < 1e-9


def test_odd_captions_score_equally_and_a_changed_word_does_not() -> None:
    rng = random.Random(0)
    words = ["a", "dog", "2 1/2", "it's", "(red)", "", "U.S.", "the", "cat", "on"]

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 9)))

    predictions = ["", *(sentence() for _ in range(30))]
    references = [[sentence() or "a" for _ in range(rng.randint(1, 4))] for _ in range(31)]
    found = captions.score(predictions, references)
    corpus, samples = java_scores(predictions, references)
    for metric, value in corpus.items():
        assert found.corpus[metric] == pytest.approx(100 * value, abs=1e-9)
        assert np.abs(found.samples[metric] - 100 * np.array(samples[metric])).max() < 1e-9
    changed, _ = java_scores([*predictions[:-1], predictions[-1] + " zebra"], references)
    assert changed["CIDEr"] != corpus["CIDEr"]
    assert changed["ROUGE-L"] != corpus["ROUGE-L"]


def test_meteor_is_high_for_copies_but_not_perfect_with_other_words_among_them() -> None:
    said = "a man rides a big brown horse"
    found = java.scores([said, "a dog", said], [[said], ["two cats sleep", "a bed"], [said]])
    assert 50 < found.metrics["METEOR"] < 99
    assert any("SPICE" in note for note in found.notes) == ("SPICE" not in found.metrics)
