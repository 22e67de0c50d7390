"""Classification: the class whose words are the likeliest at the mask, or that a head says (arXiv:2001.07676 §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from graftlm.data.labelled import chosen, refilled, relabelled
from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence
from graftlm.errors import DataError, GraftError, ShapeError, UsageError
from graftlm.evaluate.answers import prompt_key
from graftlm.evaluate.controls import TEXT_CONTROLS
from graftlm.evaluate.metrics.classes import majority, scored
from graftlm.evaluate.task import Control, Options, Outcome, Progress, Row, Task, Typed, text
from graftlm.lm.verbalise import Pooling
from graftlm.systems.base import Classifier, Responder

SAYS_NOTHING = ("N/A", "[MASK]", "")
"""What the slots hold in the sentences that calibrate (arXiv:2102.09690 §5)."""

_OPENING = 64
"""Characters by which texts that begin alike are told: a passage with several questions."""


class Classification(Task):
    """Accuracy, macro-F1 and log-loss of classes, beside what the commonest class alone would score.

    The blind control empties every slot of the template, the shuffled one fills it from another row. "log-loss" is the
    mean negative log-probability of the right class among all, in nats. A system is never shown which class is right.
    """

    name: ClassVar[str] = "classification"
    headline: ClassVar[str] = "accuracy"
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled")
    own_controls: ClassVar[Mapping[str, Control]] = TEXT_CONTROLS
    settings: ClassVar[Mapping[str, tuple[str, ...] | Typed]] = {
        "template": text(),
        "words": ("first", "mean", "max"),
        "calibrate": ("no", "yes"),
    }

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that tells no classes; DataError for samples of no or of several tasks."""
        if not isinstance(responder, Classifier):
            raise UsageError("classification: expected a system that scores classes, found one that only writes")
        right, words = _classes(samples)
        scores = self._scores(responder, samples, words, options, progress)
        if not bool(torch.isfinite(scores).all()):
            raise GraftError("classification: expected finite scores, found others; the training has gone astray")
        found = scores.argmax(dim=1).tolist()
        log_probs = scores.log_softmax(dim=1)
        metrics, intervals = scored(found, right, seed=options.seed, resamples=options.resamples)
        metrics["log-loss"] = float(-log_probs[torch.arange(len(right)), right].mean())
        names = samples[0].metadata.get("labels") or tuple(word[0].strip() for word in words)
        rows = tuple(
            Row(
                sample.key,
                names[guess],
                (names[label],),
                {"accuracy": 100.0 * (guess == label)},
                sample.sentence.prompt().text(),
            )
            for sample, guess, label in zip(samples, found, right, strict=True)
        )
        common, share = majority(torch.tensor(right).numpy())
        return Outcome(rows, metrics, intervals, (f"majority class: {names[common]}, {share:.1f} %",))

    def _scores(
        self,
        responder: Classifier,
        samples: Sequence[Sample],
        words: Sequence[Sequence[str]],
        options: Options,
        progress: Progress,
    ) -> Tensor:
        """(N, C), equal sentences once and alike ones together."""
        pooling = _pooling(self.chosen(options.settings, "words"))
        asked = [relabelled(sample.sentence, 0) for sample in samples]
        references = _silent(asked[0]) if self.chosen(options.settings, "calibrate") == "yes" else ()
        keys = [prompt_key(sentence) for sentence in asked]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        order = _ordered([sentence.text() for sentence in asked], list(first.values()))
        scores = torch.zeros(len(asked), len(words))
        progress("answers", 0, len(order))
        for start in range(0, len(order), options.batch_size):
            places = order[start : start + options.batch_size]
            batch = [asked[place] for place in places]
            found = responder.class_scores(batch, words, pooling=pooling, references=references).float().cpu()
            if found.shape != (len(places), len(words)):
                expected = (len(places), len(words))
                raise ShapeError(
                    f"classification: expected scores of shape {expected}, found {tuple(found.shape)}; is the system "
                    "made for as many classes as the template has?"
                )
            scores[places] = found
            progress("answers", min(start + options.batch_size, len(order)), len(order))
        return scores[[first[key] for key in keys]]


def _ordered(texts: Sequence[str], places: Sequence[int]) -> list[int]:
    """Places by length, those whose texts begin alike together: what rows of a batch begin with is computed once."""
    longest: dict[str, int] = {}
    for place in places:
        opening = texts[place][:_OPENING]
        longest[opening] = max(longest.get(opening, 0), len(texts[place]))

    def key(place: int) -> tuple[int, str, str, int]:
        opening = texts[place][:_OPENING]
        return longest[opening], opening, texts[place], place

    return sorted(places, key=key)


def _classes(samples: Sequence[Sample]) -> tuple[list[int], tuple[tuple[str, ...], ...]]:
    found = [chosen(sample.sentence) for sample in samples]
    words = found[0][1]
    if any(other != words for _, other in found):
        raise DataError("classification: expected rows of one template, found several; name one with --template")
    return [label for label, _ in found], words


def _silent(sentence: Sentence) -> list[Sentence]:
    return [refilled(sentence, words) for words in SAYS_NOTHING]


def _pooling(name: str) -> Pooling:
    return "mean" if name == "mean" else "max" if name == "max" else "first"
