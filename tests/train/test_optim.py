"""The rate as a function of step and clock, and what AdamW is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.config import TrainTable
from graftlm.errors import CheckpointError, ConfigError
from graftlm.train.optim import Schedule, adamw, load_optimizer_tensors, optimizer_tensors, schedule_of, set_lr


def table(**values: object) -> TrainTable:
    return TrainTable.model_validate({"max_steps": 10, **values})


def test_the_rate_warms_up_and_follows_a_cosine_to_its_final_fraction() -> None:
    schedule = Schedule(1.0, 4, 0.1, 100, None)
    rates = [schedule.lr(step, 0.0) for step in range(101)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_without_a_clock_the_rate_does_not_depend_on_time() -> None:
    schedule = Schedule(1.0, 0, 0.0, 100, None)
    assert schedule.lr(30, 0.0) == schedule.lr(30, 1e9)


def test_with_a_time_budget_the_cosine_runs_over_it_and_over_the_steps_whichever_is_further() -> None:
    schedule = Schedule(1.0, 0, 0.0, 100, 60.0)
    assert schedule.lr(0, 30.0) == pytest.approx(0.5)
    assert schedule.lr(50, 0.0) == pytest.approx(0.5)
    assert schedule.is_over(1, 60.0)
    assert schedule.is_over(100, 0.0)
    assert not schedule.is_over(99, 59.9)


def test_the_shorter_of_epochs_and_steps_bounds_a_run() -> None:
    assert schedule_of(table(max_steps=50, epochs=2), 20).total_steps == 40
    assert schedule_of(table(max_steps=30, epochs=2), 20).total_steps == 30
    assert schedule_of(table(max_steps=30), None).total_steps == 30
    with pytest.raises(ConfigError, match="a stream has no known length"):
        schedule_of(table(epochs=2), None)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = adamw(model.named_parameters(), table(weight_decay=0.1))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[0].weight)}
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_nothing_to_train_and_half_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one trained parameter"):
        adamw([], table())
    with pytest.raises(ConfigError, match=r"expected float32, found torch\.bfloat16"):
        adamw([("w", nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))], table())


def test_a_step_equals_the_formula_of_adamw() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = adamw([("w", weight)], table(lr=0.1, weight_decay=0.5, beta2=0.9))
    weight.grad = torch.tensor([[0.3, 0.4]])
    optimizer.step()
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1 * torch.ones(1, 2)
    assert torch.allclose(weight, expected, atol=1e-5)


def test_the_state_of_the_optimiser_survives_a_round_trip_and_refuses_a_foreign_one() -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW, dict[int, str]]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, adamw(model.named_parameters(), table()), {id(p): n for n, p in model.named_parameters()}

    def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer, names = make()
    step(model, optimizer)
    flat = optimizer_tensors(optimizer, names)
    assert "exp_avg_sq/weight" in flat
    other, restored, other_names = make()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(restored, flat, other_names)
    step(model, optimizer)
    step(other, restored)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), other.parameters(), strict=True))
    for broken, sentence in [
        ({**flat, "exp_avg/gone": torch.zeros(2)}, "belongs to no trained parameter"),
        ({**flat, "exp_avg/weight": torch.zeros(2, 2)}, r"expected shape \[2, 3\], found \[2, 2\]"),
        ({"exp_avg/weight": flat["exp_avg/weight"]}, "no state for"),
    ]:
        with pytest.raises(CheckpointError, match=sentence):
            load_optimizer_tensors(restored, broken, other_names)
