"""The task that asks for pictures and for words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.data.gallery import Gallery
from graftlm.data.media import content_hash
from graftlm.data.requests import WORDINGS
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.errors import DataError, UsageError
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from tests.pictures import picture

PHOTOS = [Image(picture(number)) for number in range(8)]


def samples(count: int = 8) -> list[Sample]:
    made = []
    for number in range(count):
        sentence = Sentence((PHOTOS[number], Text("x", target=True)))
        made.append(Sample(sentence, f"{number}.png", (f"Dog number {number}.",), {"split": "test"}))
    return made


class Asked:
    """Shows the picture of the number it reads; `asks`: what it takes for a request for one."""

    shared_dim = 8

    def __init__(self, asks: Any) -> None:
        self.asks = asks

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        keys = [content_hash(photo) for photo in PHOTOS]
        return torch.eye(8)[[keys.index(content_hash(part)) for part in media]]

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        raise AssertionError("the answer searches for itself")

    def retrieval_fingerprint(self) -> str:
        return "00"

    def respond(self, sentences: Sequence[Sentence], decoding: Any, *, gallery: Gallery) -> Any:
        answers = []
        for sentence in sentences:
            number = int("".join(filter(str.isdigit, sentence.text())))
            hit = gallery.search(torch.eye(8)[[number]].numpy(), 1)[0][0]
            answers.append(Sentence((hit.image if self.asks(sentence.text()) else Text("words"),)))
        return answers


def is_request_for_a_picture(words: str) -> bool:
    starts = [wording.split("{}")[0] for wording in WORDINGS["test"]["picture"]]
    return any(words.startswith(f"Q: {start}") for start in starts)


def test_who_tells_the_kinds_apart_is_right_and_who_does_not_is_half_right() -> None:
    right = evaluate(Asked(is_request_for_a_picture), "requests", samples())
    assert right.metrics == {"accuracy": 100, "picture when asked": 100, "words when not": 100, "R@1": 100}
    always = evaluate(Asked(lambda words: True), "requests", samples())
    assert always.metrics == {"accuracy": 50, "picture when asked": 100, "words when not": 0, "R@1": 100}
    never = evaluate(Asked(lambda words: False), "requests", samples())
    assert never.metrics == {"accuracy": 50, "picture when asked": 0, "words when not": 100, "R@1": 0}
    low, high = never.intervals["accuracy"]
    assert low < 50 < high
    assert not never.controls


def test_another_seed_asks_otherwise_and_one_sample_is_enough() -> None:
    prompts = [
        [row.prompt for row in evaluate(Asked(lambda words: True), "requests", samples(), Options(seed=seed)).rows]
        for seed in (0, 0, 1)
    ]
    assert prompts[0] == prompts[1] != prompts[2]
    assert "words when not" not in evaluate(Asked(lambda words: True), "requests", samples(1)).metrics


def test_a_system_of_words_alone_and_a_photo_without_captions_are_refused() -> None:
    class Mute(Asked):
        def respond(self, sentences: Sequence[Sentence], decoding: Any) -> Any:  # type: ignore[override]
            raise AssertionError("not to be asked")

    with pytest.raises(UsageError, match="answers with pictures"):
        evaluate(Mute(None), "requests", samples())
    bare = [Sample(Sentence((PHOTOS[0],)), "0.png")]
    with pytest.raises(DataError, match="at least one caption"):
        evaluate(Asked(None), "requests", bare)
