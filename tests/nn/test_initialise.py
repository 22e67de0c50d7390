"""Weights drawn anew."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from graftlm.nn.initialise import reinitialise
from tests.language_models import FAMILIES, tiny_model


def test_a_signal_passes_depthwise_convolutions_that_were_drawn_anew() -> None:
    layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1)) for _ in range(6)]
    network = nn.Sequential(*layers)
    reinitialise(network, 0)
    assert network(torch.randn(2, 64, 8, 8)).abs().mean() > 0.1


def test_running_statistics_are_forgotten_too() -> None:
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 4, 4) + 5)
    reinitialise(norm, 0)
    assert norm.running_mean is not None
    assert not norm.running_mean.any()


PATCHES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
NETWORKS: dict[str, Any] = {
    **{family: lambda family=family: tiny_model(family) for family in FAMILIES},
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**PATCHES)),
    "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**PATCHES)),
    "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])),
    "resnet": lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])),
}


def trained(name: str) -> Any:
    """A network whose every weight is far from where it began, marked as if it had been read from a file."""
    network = NETWORKS[name]()
    for part in (*network.modules(), *network.parameters()):
        part._is_hf_initialized = True
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) + 3)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_every_gain_bias_and_layer_scale_begins_where_the_network_itself_begins(name: str) -> None:
    network = trained(name)
    fresh = dict(type(network)(copy.deepcopy(network.config)).named_parameters())
    reinitialise(nn.ModuleDict({"inside": network}), 0)
    for key, parameter in network.named_parameters():
        expected = fresh[key]
        if expected.std() == 0 or parameter.numel() == 1:
            assert torch.equal(parameter, expected), key
        else:
            assert parameter.std().item() == pytest.approx(expected.std().item(), rel=0.5), key
            assert abs(parameter.mean().item() - expected.mean().item()) < expected.std().item(), key


@pytest.mark.parametrize("name", ["gemma", "dinov2"])
def test_weights_drawn_anew_depend_on_the_seed_alone(name: str) -> None:
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        network = trained(name)
        torch.manual_seed(noise)
        reinitialise(network, seed)
        assert torch.initial_seed() == noise
        states.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_layer_scale_of_any_network_lets_its_layer_through() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full((4,), 5.0))
            self.layer_scale = nn.Parameter(torch.full((4,), 5.0))
            self.bias = nn.Parameter(torch.full((4,), 5.0))

    network = Scaled()
    reinitialise(network, 0)
    assert [float(parameter.detach().mean()) for parameter in network.parameters()] == [1.0, 1.0, 0.0]
