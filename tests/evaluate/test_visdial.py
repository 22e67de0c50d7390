"""VisDial: likelihoods of candidates, judged rounds, and each error of the released script by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graftlm import backbones
from graftlm.data.readers import read_all
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.errors import DataError, UsageError
from graftlm.evaluate.metrics.ranking import ndcg
from graftlm.evaluate.report import Report
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.lm.decode import Decoding
from graftlm.systems.base import System, system_class
from tests.data.readers.files import visdial

SPACE = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
"""Vectors of three pictures and of three dialogues, whose ranks differ by direction."""


class Judge:
    """Scores a candidate by its words and the length of the prompt; pictures and dialogues by their place."""

    shared_dim = 3

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.paths = list(paths)
        self.asked: list[tuple[Sentence, tuple[str, ...], bool]] = []
        self.queries: list[Sentence] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        raise AssertionError("nothing is to be written")

    def log_likelihoods(
        self, prompt: Sentence, candidates: Sequence[str], *, released: bool = False
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((prompt, tuple(candidates), released))
        sums = [-0.1 * sum(map(ord, text)) % 7 - len(prompt.text()) / 100 for text in candidates]
        return torch.tensor(sums), torch.tensor([len(text) for text in candidates])

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        places = [self.paths.index(str(part.source)) if str(part.source) in self.paths else 0 for part in media]  # type: ignore[union-attr]
        return SPACE[places]

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        self.queries += sentences
        return SPACE[3 : 3 + len(sentences)]

    def retrieval_fingerprint(self) -> str:
        return "00"


@pytest.fixture
def samples(tmp_path: Path) -> Sequence[Sample]:
    return read_all({"path": str(visdial(tmp_path)), "per": "media"})


def run(samples: Sequence[Sample], system: Any, controls: tuple[str, ...] = (), **settings: str) -> Report:
    return evaluate(system, "visdial", samples, Options(controls=controls, settings=settings))


def judge(samples: Sequence[Sample]) -> Judge:
    return Judge([str(sample.sentence.media()[0].source) for sample in samples])  # type: ignore[union-attr]


def scores_of(asked: Sequence[tuple[Sentence, tuple[str, ...], bool]]) -> list[np.ndarray]:
    return [Judge().log_likelihoods(*one[:2])[0].double().numpy() for one in asked]


def test_a_round_is_asked_after_the_rounds_before_it(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    run(samples, system)
    prompt, candidates, released = system.asked[1]
    assert prompt.parts[1] == Text("Q: is it sunny?\nA: yes\nQ: how many dogs are there?\nA:")
    assert isinstance(prompt.parts[0], Image)
    assert candidates == (" 2", " 1 dog", " no", " no people")
    assert not released
    assert len(system.asked) == 9


def test_ranks_recalls_and_gains_are_those_of_a_loop(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    report = run(samples, system)
    found = scores_of(system.asked)
    rounds = [one for sample in samples for one in sample.metadata["rounds"]]
    ranks = [sum(values >= values[one.right]) for values, one in zip(found, rounds, strict=True)]
    assert report.metrics["R@1"] == pytest.approx(100 * np.mean([rank <= 1 for rank in ranks]), abs=1e-5)
    assert report.metrics["MRR"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks]), abs=1e-5)
    judged = [(values, one.relevance) for values, one in zip(found, rounds, strict=True) if one.relevance]
    gains = [float(ndcg(values[None], np.array([relevance]))[0]) for values, relevance in judged]
    assert len(gains) == 3
    assert report.metrics["NDCG"] == pytest.approx(100 * np.mean(gains), abs=1e-5)
    assert [row.scores["rank"] for row in report.rows] == ranks
    wrong = [float(ndcg(values[None, ::-1], np.array([relevance]))[0]) for values, relevance in judged]
    assert report.metrics["NDCG"] != pytest.approx(100 * np.mean(wrong), abs=1e-5)


def test_the_mean_can_stand_for_the_sum(samples: Sequence[Sample]) -> None:
    found = [run(samples, judge(samples), score=score).metrics["MRR"] for score in ("sum", "mean")]
    assert found[0] != found[1]


def test_official_reads_the_relevance_of_a_round_against_the_next(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    report = run(samples, system, compat="official")
    found = scores_of(system.asked)
    dense = [sample.metadata["dense"] for sample in samples]
    places = [3 * number + round_id for number, (round_id, _) in enumerate(dense)]
    gains = [float(ndcg(found[p][None], np.array([r]))[0]) for p, (_, r) in zip(places, dense, strict=True)]
    assert places == [1, 6, 8]
    assert report.metrics["NDCG"] == pytest.approx(100 * np.mean(gains), abs=1e-5)
    last = [*samples[:2], Sample(samples[2].sentence, "z", (), {**samples[2].metadata, "dense": (3, dense[2][1])})]
    assert "NDCG over 2 judged rounds, 1 left out" in run(last, judge(samples), compat="official").notes[0]


def test_official_asks_with_a_space_and_tokens_scored_after_they_are_read(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    run(samples, system, compat="official")
    prompt, candidates, released = system.asked[0]
    assert prompt.text() == "Q: is it sunny?\nA: "
    assert candidates[0] == "yes"
    assert released


def test_official_photo_retrieval_goes_the_wrong_way(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    report = run(samples, system)
    pictures = system.embed_media([sample.sentence.media()[0] for sample in samples])
    assert system.queries[0] == Sentence.of(
        "Q: is it sunny? A: yes. Q: how many dogs are there? A: 1 dog. Q: is there a tree? A: a tall tree."
    )
    scores = (SPACE[3:] @ pictures.T).numpy()
    right, wrong = (100 * np.mean([1 / sum(table[n] >= table[n, n]) for n in range(3)]) for table in (scores, scores.T))
    assert right != wrong
    assert report.metrics["t2i MRR"] == pytest.approx(right)
    assert run(samples, judge(samples), compat="official").metrics["t2i MRR"] == pytest.approx(wrong)


def test_controls_change_the_photo_and_blind_photos_are_not_found(samples: Sequence[Sample]) -> None:
    system = judge(samples)
    report = run(samples, system, controls=("blind", "shuffled"))
    assert set(report.controls) == {"blind", "shuffled"}
    assert report.controls["blind"]["t2i R@1"] == 0
    shown = [str(prompt.media()[0].source) for prompt, *_ in system.asked[18:]]  # type: ignore[union-attr]
    true = [str(prompt.media()[0].source) for prompt, *_ in system.asked[:9]]  # type: ignore[union-attr]
    assert not any(here == there for here, there in zip(shown, true, strict=True))


def toy(name: str) -> System:
    torch.manual_seed(0)
    cls = system_class(name)
    config = cls.Config.model_validate({"lm": "toy", "encoder": "toy", "precision": "float32"})
    return cls.build(config, backbones.load_parts(config)).eval()


@torch.no_grad()
def test_a_candidate_is_as_likely_as_it_is_when_written_out(samples: Sequence[Sample]) -> None:
    """The shared prompt and the batch change nothing: each candidate alone in one row, logits of every position."""
    system = toy("frozen")
    prompt = Sentence((samples[0].sentence.parts[0], Text("Q: is it sunny?\nA:")))
    words = [" yes", " no people", " x"]
    sums, counts = system.log_likelihoods(prompt, words)
    released, _ = system.log_likelihoods(prompt, words, released=True)
    for number, text in enumerate(words):
        ids = system.lm.tokenizer.encode(text)
        whole = system.inputs([prompt + Sentence.of(text)])
        logits = system.lm(whole).logits[0].float().log_softmax(-1)
        end = int(whole.mask.sum())
        shifted = sum(float(logits[end - len(ids) + place - 1, own]) for place, own in enumerate(ids))
        assert float(sums[number]) == pytest.approx(shifted, abs=1e-4)
        assert int(counts[number]) == len(ids)
        assert float(released[number]) != pytest.approx(shifted, abs=1e-2)


@torch.no_grad()
def test_the_released_score_is_that_of_every_token_after_it_was_read(samples: Sequence[Sample]) -> None:
    system = toy("frozen")
    prompt = Sentence((samples[0].sentence.parts[0], Text("Q: is it sunny?\nA: ")))
    words = ["yes", "no people"]
    sums, _ = system.log_likelihoods(prompt, words, released=True)
    context = system.inputs([prompt])
    assert system.lm.tokenizer.bos_id is not None
    for number, text in enumerate(words):
        ids = [system.lm.tokenizer.bos_id, *system.lm.tokenizer.encode(text)]
        embeds = torch.cat([context.embeds, system.lm.embed(torch.tensor([ids]))], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        logits = system.lm(type(context)(embeds, mask)).logits[0].float().log_softmax(-1)
        start = context.embeds.shape[1]
        unshifted = sum(float(logits[start + place, own]) for place, own in enumerate(ids))
        assert float(sums[number]) == pytest.approx(unshifted, abs=1e-4)


def test_a_captioner_has_likelihoods_alone_and_says_so(samples: Sequence[Sample]) -> None:
    report = run(samples, toy("frozen"))
    assert "T2I left out: the system finds no pictures" in report.notes
    assert "MRR" in report.metrics
    assert "t2i R@1" not in report.metrics
    assert len(report.rows) == 9


def test_what_cannot_be_evaluated_is_refused(samples: Sequence[Sample]) -> None:
    class Mute:
        def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
            return []

    with pytest.raises(UsageError, match="does neither"):
        run(samples, Mute())
    with pytest.raises(DataError, match="expected a dialogue of VisDial, found 'x'"):
        run([Sample(samples[0].sentence, "x")], judge(samples))
    with pytest.raises(UsageError, match="unknown setting 'compatt'"):
        run(samples, judge(samples), compatt="official")
