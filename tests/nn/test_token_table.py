"""A table of tokens holds and moves only rows that training can reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.nn.token_table import StartName, TokenTable, UniformStart, table_start

WORDS = torch.arange(40.0).view(10, 4)


def embed(ids: Tensor) -> Tensor:
    return WORDS[ids]


@pytest.mark.parametrize("name", ["uniform", "words", "zeros"])
def test_a_row_begins_as_it_is_computed_whether_it_is_held_or_not(name: StartName) -> None:
    table = TokenTable(10, 4, table_start(name, 10, 4, embed))
    ids = torch.tensor([[3, 7, 3], [9, 0, 1]])
    before = table(ids)
    table.keep(torch.tensor([7, 3]))
    assert torch.equal(table(ids), before)
    assert before.shape == (2, 3, 4)
    assert table.rows.shape == (2, 4)
    assert table.ids.tolist() == [3, 7]


def test_random_rows_lie_in_the_range_and_follow_from_the_seed() -> None:
    ids = torch.arange(500)
    rows = UniformStart(500, 8)(ids)
    assert torch.equal(rows, UniformStart(500, 8)(ids))
    assert not torch.equal(rows, UniformStart(500, 8, seed=1)(ids))
    assert rows.abs().max() <= 0.5
    assert rows.abs().max() > 0.45
    assert abs(float(rows.mean())) < 0.05


def test_only_rows_that_are_held_get_a_gradient_and_the_others_stay() -> None:
    table = TokenTable(10, 4, table_start("words", 10, 4, embed))
    table.keep(torch.tensor([2, 5]))
    table(torch.tensor([2, 5, 8, 5])).sum().backward()
    assert table.rows.grad is not None
    assert table.rows.grad[:, 0].tolist() == [1.0, 2.0]
    with torch.no_grad():
        table.rows.zero_()
    assert table(torch.tensor([8])).tolist() == [WORDS[8].tolist()]
    assert not table(torch.tensor([2])).any()


def test_keeping_more_leaves_what_was_learnt() -> None:
    table = TokenTable(10, 4, table_start("zeros", 10, 4, embed))
    table.keep(torch.tensor([5]))
    with torch.no_grad():
        table.rows.fill_(3.0)
    parameter = table.rows
    table.keep(torch.tensor([1, 5, 9]))
    assert table.rows is parameter
    assert table(torch.tensor([1, 5, 9]))[:, 0].tolist() == [0.0, 3.0, 0.0]


def test_rows_of_another_table_become_its_own() -> None:
    table = TokenTable(10, 4, table_start("zeros", 10, 4, embed))
    table.keep(torch.tensor([4]))
    table.replace(torch.tensor([6, 4]), torch.stack([torch.full((4,), 6.0), torch.full((4,), 4.0)]))
    assert table(torch.tensor([4, 6, 7]))[:, 0].tolist() == [4.0, 6.0, 0.0]


def test_rows_are_no_frozen_part_and_their_ids_are_in_no_state_dict() -> None:
    table = TokenTable(10, 4, table_start("zeros", 10, 4, embed))
    table.keep(torch.tensor([4]))
    assert set(table.state_dict()) == {"rows"}
    assert set(table.state("table.")) == {"table.ids", "table.rows"}
    assert table.stored == 40
