"""The order of batches: bucketed, complete, and a function of its state alone."""

from __future__ import annotations

import random

import pytest

from graftlm.data.sampler import BucketSampler, SamplerState
from graftlm.errors import CheckpointError, DataError

_DRAW = random.Random(1)
LENGTHS = [_DRAW.randint(4, 60) for _ in range(1000)]


def take(sampler: BucketSampler, count: int) -> list[list[int]]:
    return [next(sampler) for _ in range(count)]


def test_an_epoch_holds_every_sentence_once() -> None:
    sampler = BucketSampler(LENGTHS, 7, drop_last=False)
    batches = take(sampler, sampler.batches_per_epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert sampler.state == SamplerState(0, 1, 0)


def test_without_the_last_batch_all_batches_are_full() -> None:
    sampler = BucketSampler(LENGTHS, 7)
    assert sampler.batches_per_epoch == 142
    assert {len(batch) for batch in take(sampler, 2 * 142)} == {7}


def test_epochs_and_seeds_differ() -> None:
    first = BucketSampler(LENGTHS, 8)
    epochs = [take(first, 125), take(first, 125)]
    assert epochs[0] != epochs[1]
    assert take(BucketSampler(LENGTHS, 8, seed=1), 125) != epochs[0]
    assert take(BucketSampler(LENGTHS, 8), 125) == epochs[0]


@pytest.mark.parametrize("stop", [0, 1, 124, 125, 126, 300])
def test_a_new_sampler_goes_on_from_any_state(stop: int) -> None:
    whole = take(BucketSampler(LENGTHS, 8), 320)
    first = BucketSampler(LENGTHS, 8)
    take(first, stop)
    second = BucketSampler(LENGTHS, 8)
    second.state = SamplerState.from_json(first.state.to_json())
    assert take(second, 320 - stop) == whole[stop:]


def test_bucketing_saves_most_of_the_padding() -> None:
    def padding(chunk: int) -> float:
        batches = take(BucketSampler(LENGTHS, 8, chunk=chunk), 125)
        spent = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
        return spent / sum(LENGTHS[index] for batch in batches for index in batch) - 1

    assert padding(1) > 0.4
    assert padding(64) < 0.1


def test_a_chunk_mixes_short_and_long_batches() -> None:
    means = [sum(LENGTHS[i] for i in batch) / 8 for batch in take(BucketSampler(LENGTHS, 8), 64)]
    assert means != sorted(means)


def test_fewer_sentences_than_a_batch_still_make_one() -> None:
    assert len(next(BucketSampler([3, 4, 5], 8))) == 3


def test_no_sentences_and_a_foreign_state_are_refused() -> None:
    with pytest.raises(DataError, match="at least one training sentence"):
        BucketSampler([], 8)
    with pytest.raises(CheckpointError, match="sampler state"):
        SamplerState.from_json({"seed": 0, "epoch": "1", "position": 2})
