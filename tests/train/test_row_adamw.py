"""Tables are moved row by row, everything else as by AdamW."""

from __future__ import annotations

import torch
from torch import nn

from graftlm.nn.token_table import BY_ROW
from graftlm.train.optim import load_optimizer_tensors, optimizer_tensors
from graftlm.train.row_adamw import RowAdamW


def table(rows: int = 4, width: int = 3) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(0)))
    setattr(parameter, BY_ROW, True)
    return parameter


def grads(step: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(10 + step))


def test_rows_that_are_always_read_move_as_under_adamw() -> None:
    marked, plain, beside, alone = (
        table(),
        nn.Parameter(table().detach().clone()),
        *(nn.Parameter(torch.ones(2, 2)) for _ in range(2)),
    )
    options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.05}
    own, reference = RowAdamW([marked, beside], **options), torch.optim.AdamW([plain, alone], **options)
    for step in range(5):
        for parameter in (marked, plain, beside, alone):
            parameter.grad = grads(step, parameter.shape)
        own.step()
        reference.step()
    assert torch.allclose(marked, plain, atol=1e-6)
    assert torch.equal(beside, alone)
    assert marked.grad is not None


def test_a_row_that_is_not_read_stays_and_counts_no_step() -> None:
    marked = table()
    before = marked.detach().clone()
    optimiser = RowAdamW([marked], lr=0.1, weight_decay=0.5)
    for step in range(3):
        marked.grad = grads(step, marked.shape)
        marked.grad[1] = 0.0
        if step:
            marked.grad[3] = 0.0
        optimiser.step()
    assert torch.equal(marked[1], before[1])
    assert optimiser.state[marked]["step"].tolist() == [3.0, 0.0, 3.0, 1.0]
    assert not optimiser.state[marked]["exp_avg"][1].any()


def test_a_row_that_is_read_late_moves_as_one_that_is_read_first() -> None:
    """Its first step is as long as any first step: lr, for every number."""
    marked = table()
    optimiser = RowAdamW([marked], lr=0.1, weight_decay=0.0)
    for step in range(20):
        marked.grad = torch.zeros_like(marked)
        marked.grad[0] = grads(step, marked[0].shape)
        optimiser.step()
    before = marked.detach().clone()
    marked.grad = torch.zeros_like(marked)
    marked.grad[2] = torch.tensor([1.0, -2.0, 0.5])
    optimiser.step()
    assert torch.allclose((marked - before)[2], torch.tensor([-0.1, 0.1, -0.1]), atol=1e-5)


def test_its_state_is_written_and_read_back() -> None:
    marked, beside = table(), nn.Parameter(torch.ones(2))
    names = {id(marked): "table.rows", id(beside): "bias"}
    optimiser = RowAdamW([marked, beside], lr=0.1)

    def step(optimiser: RowAdamW, number: int) -> None:
        for parameter in (marked, beside):
            parameter.grad = grads(number, parameter.shape)
        marked.grad[0] = 0.0  # type: ignore[index]
        optimiser.step()

    step(optimiser, 0)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimiser, names).items()}
    values = marked.detach().clone(), beside.detach().clone()
    step(optimiser, 1)
    wanted = marked.detach().clone()
    with torch.no_grad():
        marked.copy_(values[0])
        beside.copy_(values[1])
    again = RowAdamW([marked, beside], lr=0.1)
    load_optimizer_tensors(again, kept, names)
    step(again, 1)
    assert torch.equal(marked, wanted)
