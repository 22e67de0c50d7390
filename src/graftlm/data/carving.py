"""Which rows are learnt from and which choices are made on: drawn from the training data alone, by a seed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from graftlm.data.labelled import LabelledRow
from graftlm.errors import DataError


def carve(rows: Sequence[LabelledRow], *, shots: int | None, dev: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and of those that choices are made on, from the same rows, drawn by `seed`.

    With `shots`, so many for each of the two, the classes as even as the rows allow; else the part `dev` of the
    rows, at least one of each class where it has two, and the rest.
    Rows of one group are never on both sides. Raises: DataError when there are too few rows.
    """
    order = list(range(len(rows)))
    random.Random(f"graftlm carve {seed}").shuffle(order)
    if shots is None:
        held = _share(rows, order, dev)
        groups = {_group(rows[place], place) for place in held}
        return sorted(place for place in order if _group(rows[place], place) not in groups), sorted(held)
    train = _even(rows, order, shots)
    groups = {_group(rows[place], place) for place in train}
    left = [place for place in order if _group(rows[place], place) not in groups]
    held = _even(rows, left, shots)
    if len(train) < shots or len(held) < shots:
        raise DataError(
            f"expected {shots} rows to train on and {shots} others to choose by, found {len(train)} and {len(held)} "
            f"among {len(rows)}; ask for fewer shots or name more splits"
        )
    return sorted(train), sorted(held)


def _group(row: LabelledRow, place: int) -> Hashable:
    return row.group or place


def _even(rows: Sequence[LabelledRow], order: Sequence[int], count: int) -> list[int]:
    """The first `count` of an order, one of each class in turn."""
    by_class: dict[int, list[int]] = {}
    for place in order:
        by_class.setdefault(rows[place].label, []).append(place)
    queues = [by_class[label] for label in sorted(by_class)]
    depth = max((len(queue) for queue in queues), default=0)
    taken = [queue[turn] for turn in range(depth) for queue in queues if turn < len(queue)]
    return taken[:count]


def _share(rows: Sequence[LabelledRow], order: Sequence[int], fraction: float) -> list[int]:
    """The part of every class that is held back, with all rows of the groups that are begun."""
    wanted: dict[int, int] = {}
    for row in rows:
        wanted[row.label] = wanted.get(row.label, 0) + 1
    left = {label: max(1, round(count * fraction)) if count > 1 else 0 for label, count in wanted.items()}
    groups: set[Hashable] = set()
    for place in order:
        group, label = _group(rows[place], place), rows[place].label
        if group in groups:
            left[label] -= 1
        elif left[label] > 0:
            groups.add(group)
            left[label] -= 1
    return [place for place in order if _group(rows[place], place) in groups]


def drawn(rows: Sequence[LabelledRow], count: int | None) -> list[LabelledRow]:
    """So many of the rows, always the same, in their own order; all of them where there are fewer."""
    if count is None or count >= len(rows):
        return list(rows)
    places = random.Random("graftlm rows").sample(range(len(rows)), count)
    return [rows[place] for place in sorted(places)]
