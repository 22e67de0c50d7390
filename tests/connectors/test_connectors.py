"""The connectors: shapes, the papers' parameter counts, and equality with independent computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.connectors.grid import GridMap, pool_positions
from graftlm.connectors.linear import Linear
from graftlm.connectors.mapper import MapperLayer, TransformerMapper
from graftlm.connectors.mlp import MLP
from graftlm.encoders.base import Features


def features(items: int = 3, positions: int = 49, width: int = 24) -> Features:
    torch.manual_seed(0)
    tokens = torch.randn(items, positions, width)
    return Features(tokens, torch.ones(items, positions, dtype=torch.bool), tokens.mean(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomise(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize(
    ("connector", "tokens"),
    [
        (Linear(24, 16, 2), 2),
        (MLP(24, 16, 10), 10),
        (TransformerMapper(24, 16, 5, clip_length=3, num_layers=2, num_heads=4), 5),
        (GridMap(24, 16, side=3, rank=8), 10),
    ],
)
def test_every_connector_gives_k_tokens_of_its_width(connector: Connector, tokens: int) -> None:
    assert connector.num_tokens == tokens
    assert connector(features()).shape == (3, tokens, connector.out_dim)


def test_clipcaps_mlp_has_the_papers_parameter_count() -> None:
    with torch.device("meta"):
        assert count(MLP(512, 768, 10)) == 31_468_800


@pytest.mark.parametrize(
    ("dim", "tokens", "clip_length", "expected"),
    [(512, 10, 10, 41_745_408), (640, 10, 10, 42_728_448), (512, 40, 40, 53_587_968), (640, 40, 40, 57_520_128)],
)
def test_clipcaps_transformer_has_the_papers_parameter_counts(
    dim: int, tokens: int, clip_length: int, expected: int
) -> None:
    with torch.device("meta"):
        mapper = TransformerMapper(dim, 768, tokens, clip_length=clip_length, num_layers=8, num_heads=8)
    assert count(mapper) == expected


def reference_layer(layer: MapperLayer, states: torch.Tensor, dim: int, heads: int) -> torch.Tensor:
    """The same layer through torch's own multi-head attention, weights remapped (fact sheet, trap 35)."""
    attention = nn.MultiheadAttention(dim, heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.to_queries.weight, layer.to_keys_values.weight]))
        attention.in_proj_bias.zero_()
        attention.out_proj.load_state_dict(layer.project.state_dict())
    normed = F.layer_norm(states, (dim,), layer.norm1.weight, layer.norm1.bias)
    states = states + attention(normed, normed, normed, need_weights=False)[0]
    normed = F.layer_norm(states, (dim,), layer.norm2.weight, layer.norm2.bias)
    return states + layer.fc2(layer.fc1(normed).clamp(min=0))


def test_the_transformer_mapper_equals_torchs_attention() -> None:
    mapper = TransformerMapper(24, 16, 5, clip_length=3, num_layers=2, num_heads=4)
    randomise(mapper)
    seen = features()
    image = (seen.pooled @ mapper.linear.weight.T + mapper.linear.bias).view(3, 3, 16)
    states = torch.cat([image, mapper.constants.expand(3, -1, -1)], dim=1)
    for layer in mapper.layers:
        assert isinstance(layer, MapperLayer)
        states = reference_layer(layer, states, 16, 4)
    expected = states[:, -5:]
    assert torch.allclose(mapper(seen), expected, atol=1e-5)
    with torch.no_grad():
        mapper.constants[0, 0] += 0.5
    assert not torch.allclose(mapper(seen), expected, atol=1e-3)


def test_the_mlp_equals_the_formula() -> None:
    mapper = MLP(24, 16, 4)
    randomise(mapper)
    seen = features()
    hidden = torch.tanh(seen.pooled @ mapper.hidden.weight.T + mapper.hidden.bias)
    expected = (hidden @ mapper.projection.weight.T + mapper.projection.bias).view(3, 4, 16)
    assert torch.allclose(mapper(seen), expected, atol=1e-5)


def test_cells_of_a_square_grid_are_averages_of_their_patches() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    cells = pool_positions(tokens, 2)[0, :, 0]
    assert cells.tolist() == [2.5, 4.5, 10.5, 12.5]


def test_positions_that_are_no_square_are_averaged_along_the_sequence() -> None:
    assert pool_positions(torch.arange(8.0).view(1, 8, 1), 2)[0, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_the_grid_map_tells_cells_apart() -> None:
    mapper = GridMap(24, 16, side=2, rank=8)
    randomise(mapper)
    soft = mapper(features(positions=16))
    assert not torch.allclose(soft[:, 1], soft[:, 2], atol=1e-3)
