"""The dual encoder: its loss by hand, its queries, and a run without a language model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from graftlm import grafts
from graftlm.backbones import load_parts
from graftlm.cli.main import main
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.toy import ToyEncoder, ToyTextEncoder
from graftlm.errors import ConfigError, DataError
from graftlm.features import CachedEncoder, list_caches
from graftlm.lm.toy import ToyLM
from graftlm.losses import info_nce
from graftlm.systems.base import Parts
from graftlm.systems.dual_encoder import DualEncoder, DualEncoderConfig
from graftlm.train.setup import complete_recipe
from graftlm.train.trainer import train
from tests.data.readers.files import jpeg
from tests.pictures import picture


def build(**fields: object) -> DualEncoder:
    torch.manual_seed(0)
    config = DualEncoderConfig.model_validate({"encoder": "toy", "text_encoder": "toy-text", "shared_dim": 8, **fields})
    return DualEncoder.build(config, load_parts(config)).eval()


def pair(seed: int, text: str) -> Sentence:
    return Sentence.of(Image(picture(seed)), Text(text, target=True))


def loss_by_hand(left: torch.Tensor, right: torch.Tensor, photos: Sequence[int], temperature: float) -> float:
    """Both directions in loops; another caption of one's own photo does not compete."""
    total, count = 0.0, len(photos)
    for rows, columns in ((left, right), (right, left)):
        for own in range(count):
            rivals = [n for n in range(count) if n == own or photos[n] != photos[own]]
            values = [float(rows[own] @ columns[n]) / temperature for n in rivals]
            total -= values[rivals.index(own)] - math.log(sum(map(math.exp, values)))
    return total / (2 * count)


def test_the_loss_is_that_of_a_loop_in_which_captions_of_one_photo_do_not_compete() -> None:
    system = build()
    batch = [pair(0, "a dog"), pair(1, "two cats"), pair(0, "it barks"), pair(2, "the sea")]
    left = system.embed_media([sentence.media()[0] for sentence in batch])
    right = system.embed_queries([Sentence.of(sentence.text()) for sentence in batch])
    found = float(system.losses(batch)["contrastive"].detach())
    assert found == pytest.approx(loss_by_hand(left, right, [0, 1, 0, 2], 0.07), abs=1e-5)
    assert found != pytest.approx(loss_by_hand(left, right, [0, 1, 2, 3], 0.07), abs=1e-3)


def test_no_gradient_pushes_captions_of_one_photo_apart() -> None:
    left = torch.randn(3, 4, requires_grad=True)
    right = torch.randn(3, 4, requires_grad=True)
    info_nce(left, right, torch.tensor(0.0), torch.tensor([5, 5, 9])).backward()  # type: ignore[no-untyped-call]
    changed = right.detach().clone()
    changed[1] = torch.randn(4)
    again = left.detach().clone().requires_grad_(True)
    info_nce(again, changed, torch.tensor(0.0), torch.tensor([5, 5, 9])).backward()  # type: ignore[no-untyped-call]
    assert left.grad is not None
    assert again.grad is not None
    assert torch.allclose(left.grad[0], again.grad[0])
    assert not torch.allclose(left.grad[1], again.grad[1])


def test_a_blind_batch_is_worth_chance_not_nothing() -> None:
    system = build()
    black = [Sentence.of(Image(picture(0)), Text(f"text {number}", target=True)) for number in range(6)]
    assert float(system.losses(black)["contrastive"].detach()) >= math.log(6) - 1e-4


def test_the_temperature_is_learnt_up_to_a_bound() -> None:
    system = build()
    batch = [pair(0, "a dog"), pair(1, "two cats")]
    with torch.no_grad():
        system.log_scale.fill_(math.log(100.0))
    bound = float(system.losses(batch)["contrastive"].detach())
    with torch.no_grad():
        system.log_scale.fill_(50.0)
    assert float(system.losses(batch)["contrastive"].detach()) == pytest.approx(bound)


def test_a_query_is_its_words_joined_or_its_pictures_or_the_mean_of_both() -> None:
    system = build()
    joined, parts = system.embed_queries([Sentence.of("a dog runs"), Sentence.of("a dog ", " runs")])
    assert torch.equal(joined, parts)
    image = Image(picture(3))
    words, seen, both = system.embed_queries([Sentence.of("a dog"), Sentence.of(image), Sentence.of("a dog", image)])
    assert torch.allclose(seen, system.embed_media([image])[0], atol=1e-6)
    assert torch.allclose(both, torch.nn.functional.normalize(words + seen, dim=0), atol=1e-6)
    with pytest.raises(DataError, match="words or a picture in query 0, found neither"):
        system.embed_queries([Sentence.of(" ")])


def test_it_needs_an_encoder_of_texts_and_one_of_something_else() -> None:
    config = DualEncoderConfig(encoder="toy", text_encoder="toy-text")
    with pytest.raises(ConfigError, match="an encoder of texts and one of media, found image"):
        DualEncoder.build(config, Parts(None, {"image": ToyEncoder()}))
    with pytest.raises(ConfigError, match="'toy' reads image, as another encoder does"):
        load_parts(config.model_copy(update={"text_encoder": "toy"}))
    with pytest.raises(ConfigError, match="expected a language model, found none"):
        _ = Parts(None, {}).lm
    system = DualEncoder.build(config, Parts(ToyLM(), {"image": ToyEncoder(), "text": ToyTextEncoder()}))
    assert not system.has_lm


def test_sentences_it_cannot_compare_are_refused() -> None:
    with pytest.raises(DataError, match="one image in each sentence, found none"):
        build().losses([Sentence.of(Text("words", target=True))])
    with pytest.raises(DataError, match="one image in each sentence, found image, image"):
        build().losses([pair(0, "a") + pair(1, "b")])


def test_pooled_vectors_come_from_the_cache_bit_by_bit(tmp_path: Path) -> None:
    texts = [Text("a dog"), Text("two cats and a very long text"), Text("a dog")]
    cached = CachedEncoder(ToyTextEncoder(), tmp_path)
    first = cached.pool(texts)
    assert torch.equal(first, cached.encode(texts).pooled)
    assert torch.equal(first[0], first[2])
    assert torch.equal(CachedEncoder(ToyTextEncoder(), tmp_path).pool(texts), first)
    assert len(cached.store) == 2


def folder(path: Path, count: int = 8) -> Path:
    (path / "images").mkdir(parents=True)
    rows = []
    for seed in range(count):
        (path / "images" / f"{seed}.jpg").write_bytes(jpeg(seed))
        split = "train" if seed < count - 3 else "val"
        captions = [f"thing number {seed}", f"{seed} in other words"]
        rows.append({"image": f"images/{seed}.jpg", "split": split, "captions": captions})
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_it_trains_caches_both_kinds_resumes_to_the_end_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path / "home"))
    data = str(folder(tmp_path / "data"))
    recipe = complete_recipe(
        {
            "system": {"name": "dual_encoder", "encoder": "toy", "text_encoder": "toy-text", "shared_dim": 8},
            "data": {"train": {"path": data, "split": "train"}, "val": {"path": data, "split": "val"}},
            "train": {"max_steps": 12, "batch_size": 4, "lr": 0.01, "eval_every": 6, "save_every": 6},
        }
    )
    result = train(recipe, run_folder=tmp_path / "run", quiet=True)
    assert result.frozen_unchanged
    assert result.best["losses"]["blind"] > 0.5
    caches = {cache.modality: cache.num_items for cache in list_caches(tmp_path / "home" / "features")}
    assert caches == {"image": 9, "text": 16}  # eight photos and the black one, sixteen captions
    description = grafts.read_description(tmp_path / "run" / "graft")
    assert {role: part["name"] for role, part in description["frozen_parts"].items()} == {
        "encoders.image": "toy",
        "encoders.text": "toy-text",
    }
    run = str(tmp_path / "run")
    assert main(["evaluate", run, "retrieval", "--data", data, "--split", "val", "--beside", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"t2i R@1", "i2t R@10", "t2i R@1 (2 captions)"} <= set(found["metrics"])
    assert found["baselines"]["run"] == found["metrics"]
    assert found["controls"]["blind"]["t2i R@1"] == 0
    assert (tmp_path / "run" / "reports" / "retrieval.html").is_file()
    assert main(["evaluate", run, "captioning", "--data", data, "--split", "val"]) == 2
    assert "expected a system with a language model" in capsys.readouterr().err
