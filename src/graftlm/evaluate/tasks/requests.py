"""Requests: is a picture shown when one is asked for, and only then (arXiv:2301.13823, §3.3)?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from graftlm.data.gallery import MemoryGallery
from graftlm.data.readers.requests import wordings_of
from graftlm.data.requests import KINDS, request
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence
from graftlm.errors import DataError, UsageError
from graftlm.evaluate.metrics.bootstrap import mean_interval
from graftlm.evaluate.retrieval import as_retriever, counter, embed_pictures, picture_of
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder, answers_with_pictures


class Requests(Task):
    """Every other captioned photo is asked for, every other one is asked about, in wordings of the split; the system
    answers with the photos of all samples at hand and its default bias.

    accuracy: pictures for requests for one, words alone for the others; chance is 50, whatever a system always does.
    R@1: requested photos that came first, of those that were requested. There is no control: nothing is shown.
    """

    name: ClassVar[str] = "requests"
    headline: ClassVar[str] = "accuracy"
    controls: ClassVar[tuple[str, ...]] = ()

    def decoding(self, beam: int) -> Decoding:
        """Up to 32 tokens, one line, always greedy: beams would weigh one token, [RET], against a sentence's mean."""
        return Decoding(max_tokens=32, stop=("\n",))

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that answers with words alone; DataError for a photo without captions."""
        retriever = as_retriever(responder, self.name)
        if not answers_with_pictures(responder):
            name = getattr(responder, "name", type(responder).__name__)
            raise UsageError(f"requests: expected a system that answers with pictures, found '{name}'; try fromage")
        images = [_image(sample) for sample in samples]
        prompts = [_prompt(sample, number, options.seed) for number, sample in enumerate(samples)]
        moved = counter(progress, len(images) + len(prompts))
        pictures = embed_pictures(retriever, images, moved)
        gallery = MemoryGallery(images, pictures.vectors[pictures.place])
        decoding = options.decoding or self.decoding(options.beam)
        answers: list[Sentence] = []
        for start in range(0, len(prompts), options.batch_size):
            answers += _answer(responder, prompts[start : start + options.batch_size], decoding, gallery)
            moved(len(prompts[start : start + options.batch_size]))
        rows = tuple(map(_row, range(len(samples)), samples, images, prompts, answers))
        hits = np.array([row.scores["accuracy"] for row in rows])
        asked = np.arange(len(rows)) % 2 == 0
        ends = {"accuracy": mean_interval(hits, seed=options.seed, resamples=options.resamples)}
        return Outcome(rows, {"accuracy": float(hits.mean()), **_by_kind(rows, hits, asked)}, ends)


def _by_kind(rows: Sequence[Row], hits: Any, asked: Any) -> dict[str, float]:
    first = [row.scores["R@1"] for row in rows if "R@1" in row.scores]
    found = {"picture when asked": hits[asked].mean(), "R@1": np.mean(first)}
    return {name: float(value) for name, value in found.items()} | (
        {"words when not": float(hits[~asked].mean())} if not asked.all() else {}
    )


def _prompt(sample: Sample, number: int, seed: int) -> Sentence:
    if not sample.references:
        raise DataError(f"requests: expected at least one caption for '{sample.key}', found none")
    split = wordings_of(str(sample.metadata.get("split")), "test")
    return request(sample, KINDS[number % len(KINDS)], split, random.Random(f"{seed}/{number}")).prompt()


def _image(sample: Sample) -> Image:
    picture = picture_of(sample, "requests")
    if not isinstance(picture, Image):
        raise DataError(f"requests: expected a photo in '{sample.key}', found {type(picture).__name__.lower()}")
    return picture


def _answer(responder: Any, prompts: Sequence[Sentence], decoding: Decoding, gallery: MemoryGallery) -> list[Sentence]:
    answers: list[Sentence] = responder.respond(prompts, decoding, gallery=gallery)
    return answers


def _row(number: int, sample: Sample, image: Image, prompt: Sentence, answer: Sentence) -> Row:
    shown = [part for part in answer if isinstance(part, Image)]
    wants = KINDS[number % len(KINDS)] == "picture"
    scores = {"accuracy": 100.0 * (bool(shown) == wants)}
    if wants:
        scores["R@1"] = 100.0 * (bool(shown) and shown[0].source == image.source)
    text = answer.text().strip() + (" [picture]" if shown else "")
    return Row(sample.key, text, sample.references, scores, prompt.text(), (), sample.key)
