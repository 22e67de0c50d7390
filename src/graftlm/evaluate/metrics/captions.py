"""All caption metrics of a set of predictions, corpus and per sample, in percent under the field's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graftlm.evaluate.metrics import bleu, cider, ngrams, rouge
from graftlm.evaluate.metrics.bootstrap import Interval, interval, weights
from graftlm.evaluate.metrics.ngrams import Floats
from graftlm.evaluate.metrics.ptb import NBSP, tokenize

BLEU_NAMES = tuple(f"BLEU-{n}" for n in range(1, ngrams.MAX_N + 1))


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Scores of P predictions.

    Attributes:
        corpus: metric -> percent over all predictions
        samples: metric -> (P,) percent of each prediction alone
        bleu_statistics: (P, 10), see `bleu.statistics`
    """

    corpus: dict[str, float]
    samples: dict[str, Floats]
    bleu_statistics: Floats

    def intervals(self, *, seed: int = 0, resamples: int = 1000) -> dict[str, Interval]:
        """Bootstrap 95 % intervals of the corpus scores, the photos drawn again with replacement."""
        drawn = weights(len(self.bleu_statistics), seed=seed, resamples=resamples)  # (resamples, P)
        bleus = bleu.scores(drawn @ self.bleu_statistics)  # (resamples, 4)
        found = {name: interval(bleus[:, n]) for n, name in enumerate(BLEU_NAMES)}
        for name, values in self.samples.items():
            if name not in BLEU_NAMES:
                found[name] = interval(drawn @ values / len(values))
        return found


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """BLEU-1..4, ROUGE-L and CIDEr as coco-caption gives them.

    Raises: DataError when the lists differ in length, are empty, or a prediction has no reference.
    """
    ngrams.check(predictions, references)
    spoken = [tokenize(text) for text in predictions]
    accepted = [[tokenize(text) for text in group] for group in references]
    counted = ngrams.count([_words(tokens) for tokens in spoken], [[_words(t) for t in group] for group in accepted])
    statistics = bleu.statistics(counted)
    samples = dict(zip(BLEU_NAMES, bleu.scores(statistics).T, strict=True))
    corpus = dict(zip(BLEU_NAMES, bleu.scores(statistics.sum(axis=0)).tolist(), strict=True))
    samples |= {"ROUGE-L": rouge.scores(spoken, accepted), "CIDEr": cider.scores(counted)}
    corpus |= {name: float(np.mean(samples[name])) for name in ("ROUGE-L", "CIDEr")}
    return CaptionScores(corpus, samples, statistics)


def _words(tokens: list[str]) -> list[str]:
    return [word for token in tokens for word in token.split()] if NBSP in "".join(tokens) else tokens
