"""The vectors on the disk: read while others write and clear."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftlm import feature_store
from graftlm.encoders.base import Features
from graftlm.errors import CheckpointError


def rows_of(*values: float) -> Features:
    """Items of one position whose vectors are their number twice."""
    pooled = torch.tensor([[value, value] for value in values])
    return Features(pooled[:, None], torch.ones(len(values), 1, dtype=torch.bool), pooled)


def test_a_clear_in_the_middle_of_a_read_is_no_damage(tmp_path: Path) -> None:
    store = feature_store.FeatureStore(tmp_path, {"dim": 2}, torch.float32)
    other = feature_store.FeatureStore(tmp_path, {"dim": 2}, torch.float32)
    store.append([b"a" * 32], rows_of(1.0))
    places = dict(store._places)
    for records in (0, 1, 2):  # nothing after the clear; a shard as long; a longer one
        other.clear()
        if records:
            other.append([bytes([number]) * 32 for number in range(records)], rows_of(*range(2, 2 + records)))
        store._places = dict(places)  # what a reader had looked up before the clear
        with pytest.raises(KeyError):
            store.read([b"a" * 32])


@pytest.mark.parametrize("name", ["meta.json", "index.bin", "shard-00000.bin"])
def test_a_folder_that_vanishes_under_a_reader_is_an_empty_one(name: str, tmp_path: Path) -> None:
    writer, reader = (feature_store.FeatureStore(tmp_path, {"dim": 2}, torch.float32) for _ in range(2))
    writer.append([b"a" * 32], rows_of(1.0))
    (tmp_path / name).unlink()
    reader.refresh()
    assert len(reader) == 0
    assert feature_store.stats_of(tmp_path).num_bytes >= 0


def test_readers_and_clearers_at_once_give_right_vectors_or_none(tmp_path: Path) -> None:
    stores = [feature_store.FeatureStore(tmp_path, {"dim": 2}, torch.float32) for _ in range(3)]
    ends, failures = time.monotonic() + 3, []
    found = [0]

    def write(store: feature_store.FeatureStore, seed: int) -> None:
        draws = random.Random(seed)
        while time.monotonic() < ends:
            numbers = draws.sample(range(1, 9), draws.randint(1, 4))
            store.append([bytes([number]) * 32 for number in numbers], rows_of(*numbers))
            if draws.random() < 0.3:
                store.clear()

    def read(store: feature_store.FeatureStore) -> None:
        while time.monotonic() < ends:
            for number in range(1, 9):
                try:
                    store.refresh()
                    assert store.read([bytes([number]) * 32]).pooled.tolist() == [[number, number]]
                    found[0] += 1
                except KeyError:
                    continue

    def run(work: Callable[..., None], *given: object) -> None:
        try:
            work(*given)
        except (AssertionError, CheckpointError, OSError) as error:
            failures.append(error)

    plans = [(write, stores[0], 0), (write, stores[1], 1), (read, stores[2]), (read, stores[2])]
    threads = [threading.Thread(target=run, args=plan) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert found[0] > 0


def test_a_lookup_of_a_big_grid_takes_less_than_a_millisecond_an_item(tmp_path: Path) -> None:
    store = feature_store.FeatureStore(tmp_path, {"dim": 1280}, torch.float16)
    keys = [bytes([number]) * 32 for number in range(16)]
    values = torch.randn(16, 50, 1280, generator=torch.Generator().manual_seed(0)).half()
    store.append(keys, Features(values[:, 1:], torch.ones(16, 49, dtype=torch.bool), values[:, 0]))
    store.read(keys)
    times = []
    for _ in range(5):
        started = time.thread_time()
        found = store.read(keys)
        times.append(time.thread_time() - started)
    assert torch.equal(found.tokens, values[:, 1:])
    assert min(times) / 16 < 1e-3
