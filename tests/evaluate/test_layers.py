"""Figures of layers are drawn over training, whatever system logs them."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from graftlm.evaluate.layers import depth_colour, layer_groups, layer_pictures, spread


def steps(count: int = 5, **rates: float) -> list[dict[str, Any]]:
    """A train row a step in which each figure grows by its rate, and validations between them."""
    rows: list[dict[str, Any]] = []
    for step in range(count):
        figures = {name: rate * step for name, rate in rates.items()}
        rows.append({"event": "train", "step": 10 * step, "loss": 3.0, "lr": 1e-3, **figures})
        rows.append({"event": "val", "step": 10 * step, "loss": 3.0, "top_5": 1.0})
    return rows


def test_figures_whose_names_end_in_a_layer_are_grouped_and_others_are_not() -> None:
    rows = steps(gate_dense_12=0.2, gate_dense_04=0.1, head_scale_1=2.0, gate_width=1.0, grad_norm=1.0)
    found = layer_groups(rows)
    assert {name: list(lines) for name, lines in found.items()} == {"gate_dense": [4, 12], "head_scale": [1]}
    assert found["gate_dense"][12] == [(10.0 * step, pytest.approx(0.2 * step)) for step in range(5)]


def test_a_run_without_such_figures_has_no_picture() -> None:
    assert layer_pictures(steps()) == ""
    assert layer_pictures([]) == ""
    assert layer_pictures(steps(1, gate_04=0.1)) == ""  # one point is no line


def test_each_group_is_one_picture_with_a_line_and_the_last_value_of_every_layer() -> None:
    html = layer_pictures(steps(gate_attention_00=0.1, gate_attention_05=0.2, gate_dense_00=0.05))
    first, second = html.split("<svg")[1:]
    assert 'aria-label="gate attention by layer over steps"' in first
    assert first.count('<polyline style="stroke:') == 2
    assert re.findall(r'class="value"[^>]*>([^<]+)<', first) == ["0.400", "0.800"]
    assert re.findall(r'class="value"[^>]*>([^<]+)<', second) == ["0.200"]
    assert ">5</text>" in first


def test_groups_of_one_kind_have_one_scale() -> None:
    def heights(html: str) -> list[float]:
        lines = re.findall(r'<polyline style="[^"]+" points="([^"]+)"', html)
        return [float(line.split()[-1].split(",")[1]) for line in lines]

    together = heights(layer_pictures(steps(gate_attention_0=0.2, gate_dense_0=0.1)))
    assert together[1] > together[0] + 50  # half as high
    apart = heights(layer_pictures(steps(gate_attention_0=0.2, norm_0=0.1)))
    assert apart[1] == apart[0]


def test_labels_do_not_touch_and_keep_their_order() -> None:
    found = spread([50, 51, 52, 10, 99], 10, 0, 100)
    assert sorted(range(5), key=found.__getitem__) == [3, 0, 1, 2, 4]
    ordered = sorted(found)
    assert all(after - before >= 10 for before, after in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 100
    assert spread([10, 60], 10, 0, 100) == [10, 60]
    assert spread([100, 100, 100], 10, 0, 100) == [80, 90, 100]


def test_thirty_layers_have_room_for_their_values() -> None:
    html = layer_pictures(steps(**{f"gate_{layer:02}": 0.01 for layer in range(30)}))
    heights = sorted(float(y) for y in re.findall(r'class="value" x="[^"]+" y="([^"]+)"', html))
    assert len(heights) == 30
    assert all(after - before >= 12.9 for before, after in pairwise(heights))


def test_layers_are_coloured_by_their_depth() -> None:
    colours = [depth_colour(number, 9) for number in range(9)]
    assert len(set(colours)) == 9
    assert (colours[0], colours[4], colours[8]) == ("#e2982d", "#d95470", "#6858d6")
    assert depth_colour(0, 1) == colours[0]
