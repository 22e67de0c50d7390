"""Draws out of the training rows: even, disjoint, the same for a seed, and no group on both sides."""

from __future__ import annotations

import pytest

from graftlm.data.carving import carve, drawn
from graftlm.data.labelled import LabelledRow
from graftlm.errors import DataError


def rows(labels: list[int], groups: list[str] | None = None) -> list[LabelledRow]:
    return [LabelledRow(str(place), {}, label, groups[place] if groups else "") for place, label in enumerate(labels)]


def test_shots_are_even_over_classes_and_apart_from_the_rows_to_choose_by() -> None:
    data = rows([0] * 100 + [1] * 20 + [2] * 6)
    train, dev = carve(data, shots=12, dev=0.1, seed=3)
    for side in (train, dev):
        counts = [sum(data[place].label == label for place in side) for label in range(3)]
        assert counts == ([4, 4, 4] if side is train else [5, 5, 2])
    assert not set(train) & set(dev)


def test_a_seed_always_draws_the_same_and_another_draws_otherwise() -> None:
    data = rows([0, 1] * 100)
    assert carve(data, shots=8, dev=0.1, seed=1) == carve(data, shots=8, dev=0.1, seed=1)
    assert carve(data, shots=8, dev=0.1, seed=1) != carve(data, shots=8, dev=0.1, seed=2)


@pytest.mark.parametrize("shots", [None, 6])
def test_no_group_stands_on_both_sides(shots: int | None) -> None:
    groups = [f"p{place // 4}" for place in range(80)]
    data = rows([0, 0, 1, 1] * 20, groups)
    train, dev = carve(data, shots=shots, dev=0.2, seed=0)
    assert train
    assert dev
    assert not {groups[place] for place in train} & {groups[place] for place in dev}


def test_the_part_to_choose_by_has_every_class_and_the_rest_is_learnt_from() -> None:
    data = rows([0] * 50 + [1] * 3 + [2])
    train, dev = carve(data, shots=None, dev=0.1, seed=0)
    assert sorted(train + dev) == list(range(54))
    assert [sum(data[place].label == label for place in dev) for label in range(3)] == [5, 1, 0]


def test_too_few_rows_are_told_with_both_numbers() -> None:
    wanted = "expected 8 rows to train on and 8 others to choose by, found 8 and 2 among 10"
    with pytest.raises(DataError, match=wanted):
        carve(rows([0, 1] * 5), shots=8, dev=0.1, seed=0)


def test_rows_that_are_drawn_are_always_the_same_and_in_order() -> None:
    data = rows([0] * 30)
    found = drawn(data, 10)
    assert found == drawn(data, 10)
    places = [int(row.key) for row in found]
    assert places == sorted(places)
    assert places != list(range(10))
    assert drawn(data, None) == drawn(data, 99) == data
