"""Frozen parts are proved frozen; a model that sees nothing is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.errors import FrozenError
from graftlm.systems.base import System
from graftlm.train.alarm import answers_alike, no_blind_gap
from graftlm.train.guard import FrozenGuard
from graftlm.train.setup import build_system


@pytest.fixture
def system(make_recipe) -> System:  # type: ignore[no-untyped-def]
    return build_system(make_recipe())


def test_training_the_trained_part_leaves_the_guard_content(system: System) -> None:
    guard = FrozenGuard.of(system)
    with torch.no_grad():
        for _, parameter in system.trainable():
            parameter.add_(1)
    guard.check(system)
    assert guard.checks == 1
    assert guard.fingerprint == FrozenGuard.of(system).fingerprint


def test_a_trained_tensor_with_a_second_name_is_not_taken_for_a_frozen_one(system: System) -> None:
    norm = system.lm.norm
    system.lm.tied = norm
    norm.requires_grad_(True)
    guard = FrozenGuard.of(system)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(1)
    guard.check(system)


def test_one_changed_bit_of_a_frozen_tensor_is_found_and_named(system: System) -> None:
    guard = FrozenGuard.of(system)
    weight = system.lm.layers[1].up.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    with pytest.raises(FrozenError, match=r"frozen tensor 'lm\.layers\.1\.up\.weight' has changed"):
        guard.check(system)
    assert guard.fingerprint != FrozenGuard.of(system).fingerprint


def test_a_module_that_is_swapped_or_added_is_found(system: System) -> None:
    guard = FrozenGuard.of(system)
    norm, system.lm.norm = system.lm.norm, nn.Identity()
    with pytest.raises(FrozenError, match=r"frozen module 'lm\.norm' has changed"):
        guard.check(system)
    system.lm.norm = norm
    system.lm.extra = nn.Identity()
    with pytest.raises(FrozenError, match=r"frozen module 'lm\.extra' appeared"):
        guard.check(system)


def test_a_buffer_counts_as_frozen(system: System) -> None:
    system.lm.register_buffer("scale", torch.ones(1))
    guard = FrozenGuard.of(system)
    system.lm.scale.add_(1)
    with pytest.raises(FrozenError, match=r"frozen tensor 'lm\.scale'"):
        guard.check(system)


def test_answers_that_hardly_differ_raise_the_alarm() -> None:
    assert answers_alike(["A dog.", "a  DOG.", "A dog.", "A dog."]).kind == "alike"  # type: ignore[union-attr]
    assert answers_alike(["", " ", "", ""]).kind == "empty"  # type: ignore[union-attr]
    assert answers_alike(["a dog", "a cat", "a bird", "a dog"]) is None
    assert answers_alike(["a dog", "a dog"]) is None


def test_no_gap_to_black_pictures_raises_the_alarm() -> None:
    alarm = no_blind_gap(2.0, 2.01)
    assert alarm is not None
    assert alarm.kind == "blind"
    assert no_blind_gap(2.0, 2.4) is None
