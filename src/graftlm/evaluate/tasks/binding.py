"""Fast concept binding: names told of a few pictures are given to a new one (Frozen §4.3, arXiv:2106.13884)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from graftlm.data.binding import MOST_WAYS, Episode, Episodes, Plan, photo_episodes
from graftlm.data.sample import Sample
from graftlm.errors import UsageError
from graftlm.evaluate.answers import answer_samples
from graftlm.evaluate.metrics import vqa
from graftlm.evaluate.metrics.bootstrap import mean_interval
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task, Typed, whole
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Likelihood, Responder

RESTRICTED = "accuracy (names)"
_EPISODES = 200


class Binding(Task):
    """Accuracy of what is written, and "accuracy (names)" of the likeliest of the names told: by chance 1 / ways.

    What is written is right when it is the name and nothing else, after the normalisation of VQA answers; "named" is
    how often it is any of the names. Without data, 200 episodes over generated scenes with the paper's names; captioned
    photos make episodes over the things their captions agree on; the paper's own files are read as they are.
    """

    name: ClassVar[str] = "binding"
    headline: ClassVar[str] = "accuracy"
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled")
    settings: ClassVar[Mapping[str, tuple[str, ...] | Typed]] = {
        "ways": whole(2, 2, MOST_WAYS),
        "shots": whole(1, 1, 16),
        "repeats": whole(0, 0, 16),
        "induction": ("yes", "no"),
        "names": ("paper", "real"),
        "concept": ("both", "shape", "colour"),
        "split": ("val", "test"),
        "score": ("mean", "sum"),
    }
    makes_samples: ClassVar[bool] = True

    def decoding(self, beam: int) -> Decoding:
        """Up to 10 tokens of one sentence."""
        return Decoding(max_tokens=10, num_beams=beam, stop=("\n", "."))

    def choose(self, samples: Sequence[Sample], options: Options) -> list[Sample]:
        """Episodes of a file as they are; else made of captioned photos, or of scenes where there is no data.

        Raises: UsageError for other ways or shots than a file of episodes has; DataError for too few photos.
        """
        if samples and isinstance(samples[0].metadata.get("episode"), Episode):
            self._check_file(_episode(samples[0]), options.settings)
            return super().choose(samples, options)
        limit = _EPISODES if options.limit is None else options.limit
        plan = self._plan(options.settings)
        if samples:
            return photo_episodes(samples, plan, limit, seed=options.seed)
        split = self.chosen(options.settings, "split")
        return list(Episodes(split, limit, seed=options.seed, plans=[plan], induction=0))

    def prepare(self, samples: Sequence[Sample], options: Options) -> Sequence[Sample]:
        """The prompts, with task induction and repeats."""
        induction = self.chosen(options.settings, "induction") == "yes"
        repeats = self.value(options.settings, "repeats")
        return [
            replace(sample, sentence=_episode(sample).sentence(induction=induction, repeats=repeats))
            for sample in samples
        ]

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """One pass; the restricted accuracy is left out for a system that scores no words."""
        written = answer_samples(self, responder, samples, options, progress)
        found = [_written(sample, text) for sample, text in zip(samples, written, strict=True)]
        notes = [f"chance among the names: {100 * np.mean([1 / len(_episode(one).names) for one in samples]):.1f} %"]
        if isinstance(responder, Likelihood):
            is_mean = self.chosen(options.settings, "score") == "mean"
            for done, (sample, scores) in enumerate(zip(samples, found, strict=True), start=1):
                scores[RESTRICTED] = 100.0 * (_likeliest(responder, sample, is_mean=is_mean) == sample.references[0])
                progress("names", done, len(samples))
        else:
            notes.append(f"{RESTRICTED} left out: the system scores no words")
        columns = {name: np.array([scores[name] for scores in found]) for name in found[0]}
        metrics = {name: float(values.mean()) for name, values in columns.items()}
        ends = {
            name: mean_interval(values, seed=options.seed, resamples=options.resamples)
            for name, values in columns.items()
        }
        rows = tuple(
            Row(sample.key, text, sample.references, scores, sample.sentence.prompt().text(), asked=sample.sentence)
            for sample, text, scores in zip(samples, written, found, strict=True)
        )
        return Outcome(rows, metrics, ends, tuple(notes), RESTRICTED if RESTRICTED in metrics else self.headline)

    def _check_file(self, episode: Episode, settings: Mapping[str, Any]) -> None:
        ways = len(episode.names)
        there = {"ways": ways, "shots": len(episode.examples) // ways}
        for name, found in there.items():
            if name in settings and self.value(settings, name) != found:
                raise UsageError(
                    f"binding: the file's episodes have {name} {found}, found the setting {settings[name]}; leave it "
                    "out or read another file"
                )

    def _plan(self, settings: Mapping[str, Any]) -> Plan:
        concept = self.chosen(settings, "concept")
        return Plan(
            ways=self.value(settings, "ways"),
            shots=self.value(settings, "shots"),
            concept="shape" if concept == "shape" else "colour" if concept == "colour" else None,
            names="real" if self.chosen(settings, "names") == "real" else "paper",
        )


def _episode(sample: Sample) -> Episode:
    episode = sample.metadata["episode"]
    assert isinstance(episode, Episode)
    return episode


def _written(sample: Sample, text: str) -> dict[str, float]:
    answer = vqa.normalise(text)
    names = {vqa.normalise(name) for name in _episode(sample).names}
    right = vqa.normalise(sample.references[0])
    return {"accuracy": 100.0 * (answer == right), "named": 100.0 * (answer in names)}


def _likeliest(scorer: Likelihood, sample: Sample, *, is_mean: bool) -> str:
    """The name told that is the likeliest to follow."""
    names = _episode(sample).names
    sums, counts = scorer.log_likelihoods(sample.sentence, [f" {name}" for name in names])
    return names[int((sums / counts if is_mean else sums).argmax())]
