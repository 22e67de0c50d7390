"""What a run is judged by while it runs: validation losses, the blind control, sample answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.config import Recipe
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Video
from graftlm.errors import ConfigError, unknown
from graftlm.lm.decode import Decoding
from graftlm.systems.base import System
from graftlm.train.source import blind, lengths_of

TOTAL = "loss"
BLIND = "blind"
"""The names of the weighted sum, and of that sum without pictures, among the losses."""
LAST = "last"
"""In place of a loss's name: whatever was validated last is the best."""


def weighted_total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum that is minimised. Raises: ConfigError when a weight names no loss."""
    for name in weights:
        if name not in losses:
            raise ConfigError(f"train.loss_weights: {unknown('loss', name, losses)}")
    terms = [loss * weights.get(name, 1.0) for name, loss in losses.items()]
    return torch.stack([term.float() for term in terms]).sum()


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices evenly over `count`; all of them when `wanted` is 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return [index * count // wanted for index in range(wanted)]


class Validation:
    """Losses on a fixed part of the validation set, in fixed batches: a pure function of the weights."""

    def __init__(self, system: System, samples: Sequence[Sample], recipe: Recipe) -> None:
        self._system = system
        self._recipe = recipe
        table, batch_size = recipe.evaluate, recipe.train.batch_size
        chosen = [samples[index].sentence for index in spread(len(samples), table.limit)]
        lengths = lengths_of(system, chosen)
        order = sorted(range(len(chosen)), key=lambda index: (lengths[index].positions, index))
        cuts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self._batches = [[chosen[index] for index in cut] for cut in cuts]
        self._targets = [sum(lengths[index].targets for index in cut) or len(cut) for cut in cuts]
        self._sees_pictures = any(isinstance(part, Image | Video) for sentence in chosen for part in sentence)
        self._shown = _one_per_medium(samples, table.num_samples)

    def losses(self, *, blind_too: bool) -> dict[str, float]:
        """Each loss by name and their weighted sum as "loss", means over targets.

        With `blind_too`, the sum with every picture black as "blind", unless the run is blind as a whole.
        """
        if self._recipe.data.blind:
            return self._mean(blind)
        found = self._mean(_as_it_is)
        if blind_too and self._sees_pictures:
            found[BLIND] = self._mean(blind)[TOTAL]
        return found

    def value(self, losses: Mapping[str, float], metric: str) -> float:
        """The loss of a name, their sum for `LAST`. Raises: ConfigError when there is none."""
        if metric == LAST:
            return losses[TOTAL]
        if metric not in losses:
            raise ConfigError(f"evaluate.best_metric: {unknown('loss', metric, [*losses, LAST])}")
        return losses[metric]

    def answers(self) -> list[dict[str, Any]]:
        """Sample answers beside their references."""
        change = blind if self._recipe.data.blind else _as_it_is
        table = self._recipe.evaluate
        decoding = Decoding(max_tokens=table.max_tokens, num_beams=table.num_beams, stop=("\n",))
        prompts = [change(sample.sentence.prompt()) for sample in self._shown]
        was_training = self._system.training
        self._system.eval()
        answers = self._system.respond(prompts, decoding)
        self._system.train(was_training)
        return [
            {
                "key": sample.key,
                "prompt": sample.sentence.prompt().text(),
                "answer": answer.text(),
                "references": list(sample.references) or [sample.sentence.targets().text()],
            }
            for sample, answer in zip(self._shown, answers, strict=True)
        ]

    @torch.no_grad()
    def _mean(self, change: Callable[[Sentence], Sentence]) -> dict[str, float]:
        sums: dict[str, float] = {}
        was_training = self._system.training
        self._system.eval()
        for batch, targets in zip(self._batches, self._targets, strict=True):
            losses = self._system.losses([change(sentence) for sentence in batch])
            total = weighted_total(losses, self._recipe.train.loss_weights)
            for name, loss in {**losses, TOTAL: total}.items():
                sums[name] = sums.get(name, 0.0) + float(loss) * targets
        self._system.train(was_training)
        return {name: value / sum(self._targets) for name, value in sums.items()}


def _as_it_is(sentence: Sentence) -> Sentence:
    return sentence


def _one_per_medium(samples: Sequence[Sample], wanted: int) -> list[Sample]:
    """Samples for show: evenly spread, no photo twice."""
    found: dict[str, Sample] = {}
    for index in spread(len(samples), min(len(samples), wanted * 8)):
        found.setdefault(samples[index].stem, samples[index])
    chosen = list(found.values())
    return [chosen[index] for index in spread(len(chosen), wanted)]
