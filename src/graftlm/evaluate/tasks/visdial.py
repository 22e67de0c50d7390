"""VisDial: the answer among a hundred, and the photo of a dialogue (FROMAGe §4.2, arXiv:2301.13823)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence, Text
from graftlm.errors import DataError, UsageError
from graftlm.evaluate.metrics.bootstrap import Interval, mean_interval
from graftlm.evaluate.metrics.ngrams import Floats
from graftlm.evaluate.metrics.ranking import ndcg, ranks_of
from graftlm.evaluate.retrieval import DEPTHS, counter, embed_pictures, embed_queries, intervals, picture_of, summary
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.systems.base import Likelihood, Responder, Retriever


class VisDial(Task):
    """IT2T: NDCG, MRR and recalls over 100 candidates a round. T2I: recalls of the photo by its whole dialogue.

    A candidate's score is the sum of its tokens' log-likelihoods (``score=mean``: their mean). A system that cannot
    write has T2I alone, one that cannot find pictures IT2T alone. Intervals are over dialogues.

    With ``compat=official``, as FROMAGe's script: every token is scored after it has been read, each candidate has a
    BOS and "A: " a space before it; NDCG compares the relevance of a round with the scores of the next one (round_id
    counts from 1); and T2I is image to text.
    """

    name: ClassVar[str] = "visdial"
    headline: ClassVar[str] = "MRR"
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled")
    settings: ClassVar[dict[str, tuple[str, ...]]] = {"compat": ("none", "official"), "score": ("sum", "mean")}

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that can do neither; DataError for samples of another kind."""
        writes = isinstance(responder, Likelihood) and getattr(responder, "has_lm", True)
        if not writes and not isinstance(responder, Retriever):
            raise UsageError(
                "visdial: expected a system that scores answers or finds pictures, found one that does neither"
            )
        official = self.chosen(options.settings, "compat") == "official"
        dialogues = [_Dialogue.of(sample) for sample in samples]
        rounds = sum(len(dialogue.rounds) for dialogue in dialogues) if writes else 0
        moved = counter(progress, rounds + 2 * len(samples) * isinstance(responder, Retriever))
        metrics: dict[str, float] = {}
        ends: dict[str, Interval] = {}
        rows: tuple[Row, ...] = ()
        notes: list[str] = []
        if writes:
            assert isinstance(responder, Likelihood)
            mean = self.chosen(options.settings, "score") == "mean"
            scores = [_scores(responder, dialogue, moved, official=official, mean=mean) for dialogue in dialogues]
            metrics, ends, notes = _it2t(dialogues, scores, options, official=official)
            rows = _rows(dialogues, scores)
        else:
            notes.append("IT2T left out: the system has no language model")
        if isinstance(responder, Retriever):
            found = _t2i(responder, samples, dialogues, moved, official=official)
            metrics |= summary(found, "t2i")
            every = np.arange(len(samples))
            ends |= intervals(found, every, "t2i", seed=options.seed, resamples=options.resamples)
        else:
            notes.append("T2I left out: the system finds no pictures")
        return Outcome(rows, metrics, ends, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Dialogue:
    """A dialogue as the reader found it."""

    sample: Sample
    rounds: tuple[Any, ...]
    dense: tuple[int, tuple[float, ...]] | None

    @classmethod
    def of(cls, sample: Sample) -> _Dialogue:
        """Raises: DataError for a sample of another kind."""
        rounds = sample.metadata.get("rounds")
        if not isinstance(rounds, tuple) or not rounds:
            raise DataError(
                f"visdial: expected a dialogue of VisDial, found '{sample.key}', which is none; read its json"
            )
        return cls(sample, rounds, sample.metadata.get("dense"))

    def prompt(self, number: int, *, official: bool) -> Sentence:
        """Photo, the rounds before, and a question that waits for its answer."""
        told = "".join(f"Q: {one.question}\nA: {one.answer}\n" for one in self.rounds[:number])
        words = f"{told}Q: {self.rounds[number].question}\nA:{' ' if official else ''}"
        return Sentence((picture_of(self.sample, "visdial"), Text(words)))

    def whole(self) -> Sentence:
        """All rounds as one query."""
        return Sentence.of(" ".join(f"Q: {one.question} A: {one.answer}." for one in self.rounds))


def _scores(
    scorer: Likelihood, dialogue: _Dialogue, moved: Callable[[int], None], *, official: bool, mean: bool
) -> list[Floats]:
    """Score of every candidate of every round; equal candidates are computed once and tie exactly."""
    found = []
    for number, one in enumerate(dialogue.rounds):
        words = list(dict.fromkeys(one.options))
        texts = words if official else [f" {text}" for text in words]
        sums, counts = scorer.log_likelihoods(dialogue.prompt(number, official=official), texts, released=official)
        values = (sums / counts if mean else sums).double().cpu().numpy()
        place = {text: index for index, text in enumerate(words)}
        found.append(values[[place[text] for text in one.options]])
        moved(1)
    return found


def _it2t(
    dialogues: Sequence[_Dialogue], scores: Sequence[Sequence[Floats]], options: Options, *, official: bool
) -> tuple[dict[str, float], dict[str, Interval], list[str]]:
    pairs = [(number, one) for number, dialogue in enumerate(dialogues) for one in dialogue.rounds]
    flat = [values for rounds in scores for values in rounds]
    ranked = np.array([_rank(values, one.right) for values, (_, one) in zip(flat, pairs, strict=True)])
    owners = np.array([number for number, _ in pairs])
    metrics = summary(ranked, "")
    ends = intervals(ranked, owners, "", seed=options.seed, resamples=options.resamples)
    gains, lost = _gains(dialogues, flat, official=official)
    if not len(gains):
        return metrics, ends, ["NDCG left out: no dense annotations beside the dialogues"]
    metrics = {"NDCG": float(gains.mean() * 100), **metrics}
    ends["NDCG"] = mean_interval(gains * 100, seed=options.seed, resamples=options.resamples)
    return metrics, ends, [f"NDCG over {len(gains)} judged rounds{f', {lost} left out' if lost else ''}"]


def _gains(dialogues: Sequence[_Dialogue], flat: Sequence[Floats], *, official: bool) -> tuple[Floats, int]:
    """NDCG of every judged round, and how many could not be judged."""
    gains: list[float] = []
    lost = start = 0
    for dialogue in dialogues:
        if dialogue.dense is not None:
            round_id, relevance = dialogue.dense
            place = start + round_id - (not official)  # round_id counts from 1, which the script overlooks
            judged = np.array([relevance])
            if place < len(flat) and judged.shape[1] == len(flat[place]) and judged.max() > 0:
                gains.append(float(ndcg(flat[place][None], judged)[0]))
            else:
                lost += 1
        start += len(dialogue.rounds)
    return np.array(gains), lost


def _rank(values: Floats, right: int) -> int:
    return int(ranks_of(values[None], np.array([right]))[0])


def _t2i(
    retriever: Retriever,
    samples: Sequence[Sample],
    dialogues: Sequence[_Dialogue],
    moved: Callable[[int], None],
    *,
    official: bool,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rank of every dialogue's photo among all photos; official: of every photo's dialogue among all dialogues."""
    pictures = embed_pictures(retriever, [picture_of(sample, "visdial") for sample in samples], moved)
    texts = embed_queries(retriever, [dialogue.whole() for dialogue in dialogues], moved)
    scores = texts.scores(slice(0, len(texts)), pictures)  # (Q, N)
    return ranks_of(scores.T if official else scores, np.arange(len(samples)))


def _rows(dialogues: Sequence[_Dialogue], scores: Sequence[Sequence[Floats]]) -> tuple[Row, ...]:
    """One row a round."""
    rows = []
    for dialogue, found in zip(dialogues, scores, strict=True):
        for number, (one, values) in enumerate(zip(dialogue.rounds, found, strict=True), start=1):
            rank = _rank(values, one.right)
            ranked = {**{f"R@{k}": 100.0 * (rank <= k) for k in DEPTHS}, "MRR": 100 / rank, "rank": float(rank)}
            key, best = f"{dialogue.sample.key}#{number}", one.options[int(values.argmax())]
            rows.append(Row(key, best, (one.answer,), ranked, one.question, sample=dialogue.sample.key))
    return tuple(rows)
