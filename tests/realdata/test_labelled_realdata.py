"""The datasets that lie in ../shared/data, by their published sizes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.readers import read_all

pytestmark = pytest.mark.realdata
SIZES = [
    ("superglue/BoolQ", "val", 3270),
    ("superglue/BoolQ", "fewglue_train", 32),
    ("superglue/CB", "train", 250),
    ("superglue/CB", "val", 56),
    ("superglue/RTE", "train", 2490),
    ("superglue/RTE", "val", 277),
    ("superglue/MultiRC", "val", 4848),
    ("superglue/MultiRC", "fewglue_train", 154),
    ("sst2", "train", 67349),
    ("sst2", "dev", 872),
    ("trec", "train", 5452),
    ("trec", "test", 500),
    ("ag_news", "test", 7600),
]


@pytest.mark.parametrize(("folder", "split", "count"), SIZES)
def test_a_dataset_has_its_published_number_of_rows(shared_data: Path, folder: str, split: str, count: int) -> None:
    ledger = Ledger()
    samples = read_all({"path": str(shared_data / folder), "split": split}, ledger)
    assert ledger.entries == []
    assert len(samples) == count


def test_boolq_and_rte_have_their_published_majorities(shared_data: Path) -> None:
    boolq = read_all({"path": str(shared_data / "superglue/BoolQ"), "split": "val"})
    rte = read_all({"path": str(shared_data / "superglue/RTE"), "split": "val"})
    assert Counter(sample.references[0] for sample in boolq) == {"yes": 2033, "no": 1237}
    assert Counter(sample.references[0] for sample in rte) == {"entailment": 146, "not_entailment": 131}


@pytest.mark.parametrize("folder", ["superglue/BoolQ", "superglue/MultiRC"])
def test_the_few_rows_there_are_give_32_and_32(shared_data: Path, folder: str) -> None:
    spec = {"path": str(shared_data / folder), "split": "fewglue_train+fewglue_dev32", "shots": 32}
    sides = [{sample.key for sample in read_all({**spec, "part": part})} for part in ("train", "dev")]
    assert [len(side) for side in sides] == [32, 32]
    assert not sides[0] & sides[1]
