"""Exact match: the answer is one of the references, letter by letter, after case and spacing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from graftlm.data.sample import Sample
from graftlm.errors import DataError
from graftlm.evaluate.answers import answer_samples
from graftlm.evaluate.metrics.bootstrap import mean_interval
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder


def normal(text: str) -> str:
    """Case and runs of white space do not count."""
    return " ".join(text.split()).casefold()


class Exact(Task):
    """Accuracy of whole answers: for generated scenes, where only one sentence is right."""

    name: ClassVar[str] = "exact"
    headline: ClassVar[str] = "accuracy"

    def decoding(self, beam: int) -> Decoding:
        """Up to 24 tokens, one line."""
        return Decoding(max_tokens=24, num_beams=beam, stop=("\n",))

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: DataError for a sample without references."""
        predictions = answer_samples(self, responder, samples, options, progress)
        rows = tuple(_row(sample, text) for sample, text in zip(samples, predictions, strict=True))
        hits = np.array([row.scores["accuracy"] for row in rows])
        interval = mean_interval(hits, seed=options.seed, resamples=options.resamples)
        metrics = {"accuracy": float(hits.mean()), "distinct": float(len(set(predictions)))}
        return Outcome(rows, metrics, {"accuracy": interval})


def _row(sample: Sample, prediction: str) -> Row:
    if not sample.references:
        raise DataError(f"exact: expected at least one accepted answer for '{sample.key}', found none")
    hit = normal(prediction) in {normal(reference) for reference in sample.references}
    scores = {"accuracy": 100.0 * hit}
    prompt = sample.sentence.prompt().text()
    return Row(sample.key, prediction, sample.references, scores, prompt, asked=sample.sentence)
