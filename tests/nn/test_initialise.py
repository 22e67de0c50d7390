"""Weights drawn anew."""

from __future__ import annotations

import torch
from torch import nn

from graftlm.nn.initialise import reinitialise


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
