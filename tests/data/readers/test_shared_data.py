"""The real data sets are read as their own READMEs say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.media import content_hash
from graftlm.data.readers import read_all
from graftlm.data.sentence import Image

pytestmark = pytest.mark.realdata


def test_flickr8k_has_its_official_splits(shared_data: Path) -> None:
    ledger = Ledger()
    found = {
        split: read_all({"path": str(shared_data / "flickr8k"), "split": split, "per": "media"}, ledger)
        for split in ("train", "val", "test")
    }
    assert {split: len(samples) for split, samples in found.items()} == {"train": 6000, "val": 1000, "test": 1000}
    assert all(len(sample.references) == 5 for samples in found.values() for sample in samples)
    keys = [sample.key for samples in found.values() for sample in samples]
    assert len(set(keys)) == 8000
    assert ledger.entries == []
    assert len(read_all({"path": str(shared_data / "flickr8k"), "split": "train"})) == 30_000


def test_flickr8k_holds_one_pair_of_equal_photos(shared_data: Path) -> None:
    samples = read_all({"path": str(shared_data / "flickr8k"), "per": "media"})
    sizes: dict[int, list[str]] = {}
    for sample in samples:
        (part,) = sample.sentence.media()
        assert isinstance(part, Image)
        sizes.setdefault(Path(str(part.source)).stat().st_size, []).append(str(part.source))
    hashes = [(content_hash(path), path) for paths in sizes.values() if len(paths) > 1 for path in paths]
    counts = Counter(digest for digest, _ in hashes)
    equal = sorted(Path(path).stem for digest, path in hashes if counts[digest] > 1)
    assert equal == ["2851198725_37b6027625", "3050606344_af711c726c"]


def test_flickr8k_makes_a_document_for_each_caption(shared_data: Path) -> None:
    found = read_all({"path": str(shared_data / "flickr8k"), "reader": "albums", "split": "train", "photos": [4, 4]})
    assert len(found) == 30_000
    for sample in found[:100]:
        assert len({content_hash(part) for part in sample.sentence.media()}) == 4
        assert [part.target for part in sample.sentence] == [False, True] * 4


def test_visual7w_choices_no_longer_begin_with_the_answer(shared_data: Path) -> None:
    samples = read_all({"path": str(shared_data / "visual7w"), "split": "val"})
    places = Counter(sample.metadata["answer_index"] for sample in samples)
    assert all(0.2 < places[place] / len(samples) < 0.3 for place in range(4))
    for sample in samples[:50]:
        assert sample.metadata["choices"][sample.metadata["answer_index"]] == sample.references[0]
        assert sample.sentence.targets().text() == f" {sample.references[0].strip()}"
