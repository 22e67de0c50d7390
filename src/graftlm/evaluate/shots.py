"""Scores at every number of shots: means over the seeds, with intervals of samples and seeds drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from graftlm.data.sample import Sample
from graftlm.evaluate.metrics import captions, vqa
from graftlm.evaluate.metrics.bootstrap import Interval, crossed_interval
from graftlm.evaluate.metrics.ngrams import Floats
from graftlm.evaluate.prompts import Shown
from graftlm.evaluate.task import Options, Row

Place: TypeAlias = tuple[int, int]
"""Number of shots, and number of the seed."""

Answers: TypeAlias = Mapping[Place, Sequence[str]]
"""The answers to all questions, in their order."""

Scored: TypeAlias = tuple[Mapping[str, float], Mapping[str, Floats]]
"""Metrics of all answers together, and of each alone: (samples,)."""

T = TypeVar("T")
_CAPTION_METRICS = ("CIDEr", "BLEU-4", "ROUGE-L")
_OF_CORPUS = ("BLEU-4",)  # no mean over samples, so no interval here


def shown(sample: Sample) -> Shown:
    """What a prepared sample's prompt was made of."""
    found = sample.metadata["shown"]
    assert isinstance(found, Shown)
    return found


def of_captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """CIDEr, BLEU-4 and ROUGE-L in percent."""
    found = captions.score(predictions, references)
    names = _CAPTION_METRICS
    return {name: found.corpus[name] for name in names}, {name: found.samples[name] for name in names}


def of_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """VQA accuracy in percent."""
    pairs = zip(predictions, references, strict=True)
    values = np.array([100 * vqa.accuracy(answer, accepted) for answer, accepted in pairs])
    return {"accuracy": float(values.mean())}, {"accuracy": values}


def summary(
    answers: Answers, scored: Mapping[Place, Scored], options: Options
) -> tuple[dict[str, float], dict[str, Interval]]:
    """ "CIDEr@4" and so on, metric by metric, with how many different answers were given; and the intervals."""
    metrics: dict[str, float] = {}
    ends: dict[str, Interval] = {}
    counts = sorted({count for count, _ in scored})
    for name in next(iter(scored.values()))[0]:
        for count in counts:
            trials = _of_count(scored, count)
            metrics[f"{name}@{count}"] = float(np.mean([corpus[name] for corpus, _ in trials]))
            if name not in _OF_CORPUS:
                values = np.stack([alone[name] for _, alone in trials])  # (trials, samples)
                found = crossed_interval(values, seed=options.seed, resamples=options.resamples)
                ends[f"{name}@{count}"] = found
    for count in counts:
        metrics[f"distinct@{count}"] = float(np.mean([len(set(texts)) for texts in _of_count(answers, count)]))
    return metrics, ends


def by_seed(scored: Mapping[Place, Scored], name: str, seed: int) -> list[str]:
    """One sentence a number of shots with the scores of all seeds, where there are several."""
    trials = len({trial for _, trial in scored})
    if trials == 1:
        return []
    counts = sorted({count for count, _ in scored})
    values = {count: [f"{corpus[name]:.1f}" for corpus, _ in _of_count(scored, count)] for count in counts}
    return [f"{name}@{count} with seeds {seed} to {seed + trials - 1}: {', '.join(values[count])}" for count in counts]


def rows(samples: Sequence[Sample], answers: Answers, scored: Mapping[Place, Scored]) -> tuple[Row, ...]:
    """One row a question, number of shots and seed; `samples` are prepared ones, one a row."""
    several = len({trial for _, trial in answers}) > 1
    found = []
    for sample in samples:
        made = shown(sample)
        place = (made.shots, made.trial)
        scores = {name: float(values[made.number]) for name, values in scored[place][1].items()}
        key = f"{sample.key}@{made.shots}{f'/{made.trial}' if several else ''}"
        prompt = sample.sentence.prompt().text()
        answer, asked = answers[place][made.number], sample.sentence
        found.append(Row(key, answer, sample.references, scores, prompt, sample=sample.key, asked=asked))
    return tuple(found)


def _of_count(places: Mapping[Place, T], count: int) -> list[T]:
    return [places[place] for place in sorted(places) if place[0] == count]
