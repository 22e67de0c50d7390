"""What every system that finds pictures must do; a new file in systems/ is under test at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from graftlm import grafts
from graftlm.data.sentence import Image, Sentence
from graftlm.systems.base import Retriever, System, system_names
from tests.conformance.test_systems import CAPTIONS, build, fit, sentences
from tests.pictures import picture

RETRIEVERS = [name for name in system_names() if isinstance(build(name), Retriever)]
QUERIES = [Sentence.of(text) for text in (*CAPTIONS, "a longer text that no picture was shown with", "x")]
PICTURES = [Image(picture(seed)) for seed in range(6)]


@pytest.fixture(scope="module", params=RETRIEVERS)
def system(request: pytest.FixtureRequest) -> System:
    found = build(request.param)
    fit(found, sentences(), steps=120)
    return found


def retriever(system: System) -> Retriever:
    assert isinstance(system, Retriever)
    return system


def test_vectors_are_float32_of_length_one_and_as_wide_as_the_system_says(system: System) -> None:
    for vectors in (retriever(system).embed_media(PICTURES), retriever(system).embed_queries(QUERIES)):
        assert (vectors.dtype, vectors.device.type, vectors.requires_grad) == (torch.float32, "cpu", False)
        assert vectors.shape == (6, retriever(system).shared_dim)
        assert vectors.norm(dim=-1) == pytest.approx(torch.ones(6), abs=1e-5)


def test_nothing_in_is_nothing_out(system: System) -> None:
    for vectors in (retriever(system).embed_media([]), retriever(system).embed_queries([])):
        assert vectors.shape == (0, retriever(system).shared_dim)


def test_a_batch_gives_what_each_gives_alone_in_any_order(system: System) -> None:
    finder = retriever(system)
    for embed, items in ((finder.embed_media, PICTURES), (finder.embed_queries, QUERIES)):
        together = embed(items)  # type: ignore[operator]
        alone = torch.cat([embed([item]) for item in items])  # type: ignore[operator]
        assert (together - alone).abs().max() < 1e-5
        assert (embed(items[::-1]).flip(0) - together).abs().max() < 1e-5  # type: ignore[operator]


def test_a_closing_sought_picture_may_be_left_out(system: System) -> None:
    closed = [Sentence((*sentence.parts, Image.sought())) for sentence in QUERIES]
    assert torch.equal(retriever(system).embed_queries(closed), retriever(system).embed_queries(QUERIES))


def test_after_fitting_each_caption_finds_its_picture(system: System) -> None:
    scores = retriever(system).embed_queries(QUERIES[:4]) @ retriever(system).embed_media(PICTURES[:4]).T
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert scores.argmax(dim=0).tolist() == [0, 1, 2, 3]


def test_the_fingerprint_follows_what_pictures_are_mapped_by(system: System, tmp_path: Path) -> None:
    before = retriever(system).retrieval_fingerprint()
    assert int(before, 16) >= 0
    grafts.save(system, tmp_path / "graft")
    loaded = grafts.load(tmp_path / "graft")
    assert retriever(loaded).retrieval_fingerprint() == before
    assert torch.equal(retriever(loaded).embed_media(PICTURES), retriever(system).embed_media(PICTURES))
    with torch.no_grad():
        for _, parameter in loaded.trainable():
            parameter.add_(0.01)
    assert retriever(loaded).retrieval_fingerprint() != before


def test_two_threads_get_the_vectors_of_one(system: System) -> None:
    finder = retriever(system)
    expected = finder.embed_media(PICTURES), finder.embed_queries(QUERIES)
    wrong: list[int] = []

    def ask() -> None:
        torch.set_num_threads(1)  # each thread has a number of its own, and sums are rounded by it
        for turn in range(50):
            same = torch.equal(finder.embed_media(PICTURES), expected[0])
            if not same or not torch.equal(finder.embed_queries(QUERIES), expected[1]):
                wrong.append(turn)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
