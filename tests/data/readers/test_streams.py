"""A stream gives the same samples again, and goes on exactly where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.readers import read, read_all
from graftlm.data.sample import Sample
from graftlm.data.stream import Stream
from graftlm.errors import ConfigError, DataError
from tests.data.readers import files


def tars(folder: Path) -> dict[str, Any]:
    """Three tars of 4, 1 and 5 photos; some have two captions, one has none."""
    number = 0
    for shard, size in enumerate((4, 1, 5)):
        members: dict[str, bytes | str] = {}
        for _ in range(size):
            members[f"{number:03}.jpg"] = files.jpeg(number)
            captions = [f"{number} first", f"{number} second"][: 1 + number % 2]
            members[f"{number:03}.json"] = json.dumps({"captions": [" "] if number == 6 else captions})
            number += 1
        files.tar(folder / f"s{shard}.tar", members)
    return {"path": str(folder), "reader": "webdataset", "stream": True}


def tables(folder: Path) -> dict[str, Any]:
    """Two parquet files of row groups of two."""
    for file in range(2):
        numbers = range(file * 5, file * 5 + 5)
        rows = [{"id": n, "image": files.jpeg(n), "text": " " if n == 6 else f"{n} first"} for n in numbers]
        files.parquet(folder / f"part-{file}.parquet", rows)
    return {"path": str(folder), "reader": "parquet", "stream": True}


def saved(folder: Path) -> dict[str, Any]:
    """A data set that `datasets` wrote; its runs are shorter than usual."""
    datasets = pytest.importorskip("datasets")
    captions = [" " if n == 6 else f"{n} first" for n in range(11)]
    pictures = [{"bytes": files.jpeg(n), "path": None} for n in range(11)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": pictures, "text": captions}, features=features).save_to_disk(str(folder / "d"))
    return {"path": str(folder / "d"), "reader": "hub", "stream": True}


def documents(folder: Path) -> dict[str, Any]:
    """MMC4's documents in two tars; some are cut into two sentences, one fits no picture."""
    for shard, size in enumerate((3, 4)):
        members: dict[str, bytes | str] = {}
        for number in range(shard * 3, shard * 3 + size):
            names = [f"{number}-{place}.jpg" for place in range(1 + number % 2)]
            info = [{"image_name": name, "matched_text_index": n, "matched_sim": 0.3} for n, name in enumerate(names)]
            row = {"text_list": [f"{number} first", f"{number} second"], "image_info": [] if number == 4 else info}
            members[f"{number:03}.json"] = json.dumps(row)
            members |= {name: files.jpeg(10 * number + place) for place, name in enumerate(names)}
        files.tar(folder / f"s{shard}.tar", members)
    return {"path": str(folder), "reader": "mmc4", "stream": True, "max_images": 1}


SOURCES = {"webdataset": tars, "parquet": tables, "hub": saved, "mmc4": documents}


def stream(spec: Mapping[str, Any], ledger: Ledger | None = None) -> Stream[Any]:
    found = read(spec, ledger)
    assert isinstance(found, Stream)
    return found


def names(samples: list[Sample]) -> list[tuple[str, str]]:
    return [(sample.key, sample.sentence.text()) for sample in samples]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The spec of one streamed source."""
    monkeypatch.setattr("graftlm.data.readers.hub._RUN", 3)
    return SOURCES[request.param](tmp_path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_stopped_after_any_sample_the_rest_of_two_epochs_follows_exactly(source: dict[str, Any], shuffle: bool) -> None:
    spec = {**source, "shuffle": shuffle, "seed": 3}
    whole = stream(spec)
    first, second = names(list(whole)), names(list(whole))
    assert sorted(first) == sorted(second)
    assert (first == second) is not shuffle
    for count in range(len(first) + 1):
        stopped = stream(spec)
        iterator = iter(stopped)
        begun = names([next(iterator) for _ in range(count)])
        state = json.loads(json.dumps(stopped.state_dict()))
        resumed = stream(spec)
        resumed.load_state_dict(state)
        rest = names(list(resumed))
        assert begun + rest == first, f"stopped after {count}"
        assert names(list(resumed)) == second, f"stopped after {count}"


def test_a_stream_gives_what_the_samples_by_number_are(source: dict[str, Any]) -> None:
    by_number = list(read_all({**source, "stream": False}))
    streamed = list(stream(source))
    assert [sample.sentence for sample in streamed] == [sample.sentence for sample in by_number]
    assert len({sample.key for sample in streamed}) == len(streamed)


def test_bad_rows_are_written_down_once_whatever_the_epochs(source: dict[str, Any]) -> None:
    ledger = Ledger()
    samples = stream(source, ledger)
    for _ in range(3):
        assert list(samples)
    assert sum(ledger.reasons.values()) == 1
    assert set(ledger.reasons) <= {"empty-caption", "media-count"}


def test_limit_counts_rows_of_each_epoch(source: dict[str, Any]) -> None:
    samples = stream({**source, "limit": 3, "per": "media"})
    first = list(samples)
    assert len({sample.stem for sample in first}) == 3
    assert names(list(samples)) == names(first)


def test_a_state_of_other_shards_or_another_seed_is_refused(source: dict[str, Any]) -> None:
    state = stream({**source, "shuffle": True, "seed": 1}).state_dict()
    with pytest.raises(DataError, match="have changed since"):
        stream({**source, "shuffle": True, "seed": 2}).load_state_dict(state)
    with pytest.raises(DataError, match="whole numbers"):
        stream({**source, "shuffle": True, "seed": 1}).load_state_dict({**state, "row": "many"})


def test_a_stream_is_refused_where_samples_by_number_are_needed(source: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="leave out 'stream'"):
        read_all(source)


def test_a_stream_without_a_usable_row_says_so(tmp_path: Path) -> None:
    files.tar(tmp_path / "a.tar", {"1.txt": "words alone"})
    with pytest.raises(DataError, match="1 missing-column"):
        list(stream({"path": str(tmp_path), "stream": True}))
