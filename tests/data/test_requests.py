"""Requests made of captions: two kinds, wordings of their own split, the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.readers import read_all
from graftlm.data.requests import KINDS, WORDINGS
from graftlm.data.retrieval import by_use
from graftlm.data.sentence import Image, Text
from graftlm.errors import ConfigError, DataError
from tests.pictures import picture

CAPTIONS = ("A dog runs .", "The brown dog runs over grass .", "An animal in the field .")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(10):
        picture(number).save(tmp_path / f"{number}.png")
        captions = [f"{text[:-2]} {number} ." for text in CAPTIONS]
        rows.append({"image": f"{number}.png", "captions": captions, "split": "train"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def table(folder: Path, **more: Any) -> dict[str, Any]:
    return {"reader": "requests", "path": str(folder), "split": "train", "tidy": True, **more}


def test_no_wording_stands_in_two_splits_or_kinds() -> None:
    sets = [set(wordings) for kinds in WORDINGS.values() for wordings in kinds.values()]
    assert not any(one & other for one, other in combinations(sets, 2))
    assert all(wording.count("{}") == 1 for wordings in sets for wording in wordings)


def test_the_captions_come_first_then_both_kinds_then_several_captions(folder: Path) -> None:
    samples = read_all(table(folder, requests=0.4, several=0.2))
    plain = read_all({**table(folder), "reader": "jsonl"})
    assert len(plain) == 30
    assert len(samples) == 30 + 12 + 6
    assert list(samples[:30]) == list(plain)
    kinds = Counter(isinstance(sample.sentence.targets().parts[0], Image) for sample in samples[30:42])
    assert kinds == {True: 6, False: 6}
    assert len({sample.key for sample in samples}) == len(samples)
    for sample in samples[30:42]:
        words = sample.sentence.prompt().text()
        assert words.startswith("Q: ")
        assert words.endswith("\nA:")
        assert " ." not in words
    for sample in samples[42:]:
        words = [part.content.strip() for part in sample.sentence if isinstance(part, Text)]
        assert 2 <= len(words) <= 3
        assert {word[-2] for word in words} == {sample.stem.split(".")[0]}


def test_the_captioned_samples_may_be_left_out(folder: Path) -> None:
    whole, alone = (read_all(table(folder, requests=0.4, several=0.2, alone=one)) for one in (False, True))
    assert len(alone) == 18
    assert list(alone) == list(whole[30:])


def test_training_finds_a_pair_in_one_kind_and_words_to_write_in_the_other(folder: Path) -> None:
    samples = read_all(table(folder, requests=0.4, several=0.2))
    pairs, written, alone = by_use([sample.sentence for sample in samples[30:]])
    assert (len(pairs), len(written), len(alone)) == (12, 0, 6)
    for sentence in alone:
        (answer,) = sentence.targets()
        assert isinstance(answer, Text)
        asked = sentence.prompt().text().lower()
        assert answer.content.strip().rstrip(".").lower() not in asked


def test_a_sample_depends_on_its_number_and_the_seed_alone(folder: Path) -> None:
    first, again, other = (read_all(table(folder, requests=0.5, seed=seed)) for seed in (0, 0, 1))
    assert [first[number] for number in (44, 31)] == [again[44], again[31]]
    assert any(first[number].sentence != other[number].sentence for number in range(30, 45))
    assert first[-1] == first[len(first) - 1]
    with pytest.raises(IndexError):
        first[len(first)]


def test_requests_are_worded_for_their_split(folder: Path) -> None:
    asked = {
        split: {sample.sentence.prompt().text() for sample in read_all(table(folder, requests=2.0, split=split))[30:]}
        for split in ("train",)
    }["train"]
    wordings = [wording.split("{}")[0] for kind in KINDS for wording in WORDINGS["train"][kind]]
    assert all(any(words.startswith(f"Q: {start}") for start in wordings) for words in asked)


def test_what_is_wrong_is_said_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reader of captioned photos"):
        read_all(table(folder, captions="requests"))
    with pytest.raises(ConfigError, match="tidyy"):
        read_all({**table(folder), "tidyy": True})
    bare = tmp_path / "bare"
    bare.mkdir()
    picture(0).save(bare / "0.png")
    with pytest.raises(DataError, match="captioned photo"):
        list(read_all({"reader": "requests", "captions": "folder", "path": str(bare), "requests": 1.0}))
