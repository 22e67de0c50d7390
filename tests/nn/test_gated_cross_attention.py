"""The gated block: closed it changes no bit, open it reads what it may, and its keys and values are made once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.lm.base import Memory
from graftlm.nn.attention import Geometry
from graftlm.nn.flamingo_variants import VARIANTS
from graftlm.nn.gated_cross_attention import GatedCrossAttention

ROWS, LENGTH, DIM, PLACES, WIDTH = 2, 5, 24, 6, 16


def block(
    variant: str = "paper", gate: Any = "scalar", value: float = 0.7, dropout: float = 0.0
) -> GatedCrossAttention:
    torch.manual_seed(0)
    geometry = VARIANTS[variant].block(DIM, 4, width=0, dropout=dropout)
    made = GatedCrossAttention(DIM, WIDTH, geometry, gate=gate)
    with torch.no_grad():
        made.attention_gate.fill_(value)
        made.dense_gate.fill_(value)
    return made


def hidden() -> Tensor:
    return torch.randn(ROWS, LENGTH, DIM, generator=torch.Generator().manual_seed(1))


def memory() -> Memory:
    """The first word of the first row may read nothing, the second row's last word one position alone."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(ROWS, LENGTH, PLACES, generator=generator) > 0.3
    mask[0, 0] = False
    mask[1, -1] = torch.arange(PLACES) == 3
    return Memory(torch.randn(ROWS, PLACES, WIDTH, generator=generator), mask)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_closed_gates_change_no_bit(variant: str, gate: str) -> None:
    assert torch.equal(block(variant, gate, 0.0)(hidden(), memory()), hidden())
    assert not torch.allclose(block(variant, gate)(hidden(), memory()), hidden(), atol=1e-2)


def test_half_precision_hidden_states_pass_a_closed_block_unchanged() -> None:
    states = hidden().to(torch.bfloat16)
    assert torch.equal(block(value=0.0)(states, memory()).to(torch.bfloat16), states)


def test_at_the_start_only_the_gates_get_a_gradient() -> None:
    made = block(value=0.0)
    made(hidden(), memory()).square().sum().backward()
    moved = {name for name, parameter in made.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved == {"attention_gate", "dense_gate"}


def test_open_gates_on_maps_of_zero_change_no_bit_and_every_map_learns_after_a_step() -> None:
    torch.manual_seed(0)
    geometry = VARIANTS["paper"].block(DIM, 4, width=0, dropout=0.0)
    made = GatedCrossAttention(DIM, WIDTH, geometry, init="open")
    assert min(made.gates()) > 0.5
    assert torch.equal(made(hidden(), memory()), hidden())
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    for learnt in ({"attention.to_output.weight", "dense.down.weight"}, {name for name, _ in made.named_parameters()}):
        optimiser.zero_grad()
        made(hidden(), memory()).pow(3).sum().backward()
        moved = {name for name, one in made.named_parameters() if one.grad is not None and one.grad.any()}
        assert moved == learnt
        optimiser.step()


def test_a_word_without_memory_gets_exactly_nothing_from_the_attention() -> None:
    made = block()
    with torch.no_grad():
        made.dense_gate.zero_()
    states, read = hidden(), memory()
    changed = made(states, read)
    assert torch.equal(changed[0, 0], states[0, 0])
    assert (changed[0, 1:] != states[0, 1:]).any(-1).all()
    weights = made.weights(states, read)
    assert not weights[0, :, 0].any()
    assert torch.equal(weights[1, :, -1], (torch.arange(PLACES) == 3).float().expand(4, -1))


def test_a_memory_of_nothing_is_read_as_nothing() -> None:
    made, states = block(), hidden()
    empty = Memory(torch.zeros(ROWS, 0, WIDTH), torch.zeros(ROWS, LENGTH, 0, dtype=torch.bool))
    barred = Memory(memory().states, torch.zeros_like(memory().mask))
    torch.testing.assert_close(made(states, empty), made(states, barred))
    assert not torch.allclose(made(states, empty), states, atol=1e-3)  # the dense layer works all the same


def test_a_word_with_nothing_to_read_gives_no_nan_to_any_gradient() -> None:
    made = block()
    states = hidden().requires_grad_()
    made(states, memory()).square().sum().backward()
    assert all(bool(part.grad.isfinite().all()) for part in (states, *made.parameters()) if part.grad is not None)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_keys_and_values_that_were_made_before_are_taken_as_they_are(variant: str) -> None:
    made, read = block(variant), memory()
    once = read.project([made])
    lost = Memory(torch.full_like(read.states, float("nan")), read.mask, once.projected)
    assert torch.equal(made(hidden(), lost), made(hidden(), read))
    other = block(variant)
    assert made(hidden(), lost).isfinite().all()
    assert other(hidden(), lost).isnan().any()  # another block has none, and makes its own


def test_selected_rows_of_a_memory_read_as_they_did() -> None:
    made, rows = block(), torch.tensor([1, 0, 1])
    chosen = memory().project([made]).select(rows)
    torch.testing.assert_close(made(hidden()[rows], chosen), made(hidden(), memory())[rows])


def test_a_vector_gate_opens_its_own_dimensions_alone() -> None:
    made = block(gate="vector", value=0.0)
    with torch.no_grad():
        made.attention_gate[3] = 1.0
    moved = (made(hidden(), memory()) != hidden()).any(0).any(0)
    assert moved.nonzero()[:, 0].tolist() == [3]
    assert made.gates()[0] == pytest.approx(torch.tensor(1.0).tanh().item() / DIM)


def test_a_block_outside_training_drops_nothing() -> None:
    made = block(dropout=0.5)
    assert not torch.equal(made.train()(hidden(), memory()), made(hidden(), memory()))
    assert torch.equal(made.eval()(hidden(), memory()), block()(hidden(), memory()))


@pytest.mark.parametrize(
    ("dim", "heads", "count", "billions"), [(2048, 16, 24, 1.158), (4096, 32, 10, 1.804), (8192, 64, 12, 8.36)]
)
def test_the_published_sizes_have_the_published_parameter_counts(
    dim: int, heads: int, count: int, billions: float
) -> None:
    geometry = VARIANTS["paper"].block(dim, heads, width=0, dropout=0.0)
    with torch.device("meta"):
        made = GatedCrossAttention(dim, 1536, geometry)
    numbers = count * sum(parameter.numel() for parameter in made.parameters())
    assert numbers / 1e9 == pytest.approx(billions, rel=1e-3)


def test_heads_may_be_narrower_than_the_language_model() -> None:
    made = GatedCrossAttention(DIM, WIDTH, Geometry(heads=2, head_dim=5, dense_dim=7))
    assert made.attention.to_queries.weight.shape == (10, DIM)
    assert made.project(memory().states).shape == (2, ROWS, 2, PLACES, 5)
