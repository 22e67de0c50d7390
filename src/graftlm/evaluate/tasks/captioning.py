"""Captioning: a photo is described, and the description compared with people's (Chen et al. 2015, arXiv:1504.00325)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from graftlm.data.sample import Sample
from graftlm.errors import DataError
from graftlm.evaluate.answers import answer_samples
from graftlm.evaluate.metrics import captions, java
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder


class Captioning(Task):
    """BLEU-1..4, ROUGE-L and CIDEr; METEOR and SPICE where Java and `pycocoevalcap` are found.

    Besides: "distinct", how many different captions were given, and "mean length" in words. A model that says one
    thing of all photos shows there before anywhere else.
    """

    name: ClassVar[str] = "captioning"
    headline: ClassVar[str] = "CIDEr"

    def decoding(self, beam: int) -> Decoding:
        """Up to 40 tokens, one line."""
        return Decoding(max_tokens=40, num_beams=beam, stop=("\n",))

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: DataError for a sample without references."""
        for sample in samples:
            if not any(reference.strip() for reference in sample.references):
                raise DataError(f"captioning: expected at least one reference caption for '{sample.key}', found none")
        predictions = answer_samples(self, responder, samples, options, progress)
        references = [[text for text in sample.references if text.strip()] for sample in samples]
        found = captions.score(predictions, references)
        extra = java.scores(predictions, references)
        rows = tuple(
            Row(
                sample.key,
                predictions[number],
                tuple(references[number]),
                {name: float(values[number]) for name, values in found.samples.items()},
                sample.sentence.prompt().text(),
                asked=sample.sentence,
            )
            for number, sample in enumerate(samples)
        )
        metrics = {**found.corpus, **extra.metrics, **_spread(predictions)}
        return Outcome(rows, metrics, found.intervals(seed=options.seed, resamples=options.resamples), extra.notes)


def _spread(predictions: Sequence[str]) -> dict[str, float]:
    words = [len(text.split()) for text in predictions]
    return {"distinct": float(len(set(predictions))), "mean length": sum(words) / len(words)}
