"""Figures of a run that belong to layers of the language model, over training, as inline SVG.

A system's figures whose names end in the number of a layer ("gate_attention_04", "gate_attention_08") are one group,
drawn as one picture: a line for each layer, coloured by its depth, with its value at the end, as the gates are drawn in
the appendix of Flamingo (arXiv:2204.14198).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from graftlm.evaluate.curve import Points, points_of

Lines: TypeAlias = Mapping[int, Points]
"""Steps and values by layer, the first layer first."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 540, 300, 52, 104, 40, 34
_LINE_PX = 13  # between the values at the end
_NAME = re.compile(r"(.*\D)_(\d+)")
_DEPTHS = ((226, 152, 45), (217, 84, 112), (104, 88, 214))  # of the first, the middle and the last layer


def layer_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, Lines]:
    """The groups in rows of metrics.jsonl, by name and layer; a layer with fewer than two points is left out."""
    names = dict.fromkeys(name for row in rows if row.get("event") == "train" for name in row)
    found: dict[str, dict[int, Points]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        points = points_of(rows, "train", name) if match else []
        if match and len(points) > 1:
            found.setdefault(match[1], {})[int(match[2])] = points
    return {name: dict(sorted(lines.items())) for name, lines in found.items()}


def layer_pictures(rows: Sequence[Mapping[str, Any]]) -> str:
    """A picture of every group; groups that begin with the same word have one scale. Empty where there is none."""
    groups = layer_groups(rows)
    return "".join(_picture(name, lines, _Frame.of(name, groups)) for name, lines in groups.items())


def spread(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Places at least `gap` apart from `top` to `bottom`, in the same order and near where they were."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = [0.0] * len(places)
    before, after = top - gap, bottom + gap
    for number in order:
        before = found[number] = max(places[number], before + gap)
    for number in reversed(order):
        after = found[number] = min(found[number], after - gap)
    return found


def depth_colour(number: int, count: int) -> str:
    """The colour of the layer of this number among `count`."""
    place = (len(_DEPTHS) - 1) * number / max(1, count - 1)
    lower = min(int(place), len(_DEPTHS) - 2)
    pairs = zip(_DEPTHS[lower], _DEPTHS[lower + 1], strict=True)
    return "#" + "".join(f"{round(one + (other - one) * (place - lower)):02x}" for one, other in pairs)


@dataclass(frozen=True, slots=True)
class _Frame:
    """First and last step, least and greatest value, and the height of the picture."""

    first: float
    last: float
    low: float
    high: float
    height: float

    @classmethod
    def of(cls, name: str, groups: Mapping[str, Lines]) -> _Frame:
        """That of the group `name`; 0 is among the values."""
        kind = name.partition("_")[0]
        alike = [lines for other, lines in groups.items() if other.partition("_")[0] == kind]
        values = [value for lines in alike for points in lines.values() for _, value in points]
        steps = [step for points in groups[name].values() for step, _ in points]
        low, high = min(0.0, *values), max(0.0, *values)
        height = max(HEIGHT, TOP + BOTTOM + _LINE_PX * max(len(lines) for lines in alike))
        return cls(min(steps), max(steps), low, high if high > low else low + 1.0, height)

    def place(self, step: float, value: float) -> tuple[float, float]:
        """Pixels of a point."""
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / ((self.last - self.first) or 1)
        y = self.height - BOTTOM - (self.height - BOTTOM - TOP) * (value - self.low) / (self.high - self.low)
        return round(x, 1), round(y, 1)

    def words(self, value: float) -> str:
        """A value with as many digits as tell the values of the picture apart."""
        size = max(abs(self.low), abs(self.high))
        return f"{value:.{2 if size >= 1 else 3 if size >= 0.1 else 4}f}"


def _picture(name: str, lines: Lines, frame: _Frame) -> str:
    words = name.replace("_", " ")
    ends = [frame.place(*points[-1]) for points in lines.values()]
    labels = spread([y for _, y in ends], _LINE_PX, TOP + 2, frame.height - BOTTOM)
    parts = []
    for number, ((layer, points), (x, y), label) in enumerate(zip(lines.items(), ends, labels, strict=True)):
        colour, end = depth_colour(number, len(lines)), WIDTH - RIGHT
        path = " ".join(f"{at},{height}" for at, height in (frame.place(*point) for point in points))
        parts.append(f'<polyline style="stroke:{colour}" points="{path}"/>')
        parts.append(f'<polyline class="lead" style="stroke:{colour}" points="{x},{y} {end + 14},{label:.1f}"/>')
        parts.append(_text(str(layer), end + 20, label + 4))
        parts.append(_text(frame.words(points[-1][1]), WIDTH - 8, label + 4, "value", anchor="end"))
    return (
        f'<svg class="curve layers" viewBox="0 0 {WIDTH} {frame.height}" role="img" '
        f'aria-label="{escape(words)} by layer over steps">{_axes(words, frame)}{"".join(parts)}</svg>'
    )


def _axes(words: str, frame: _Frame) -> str:
    end = WIDTH - RIGHT
    parts = [
        _text(words, LEFT, 20, "name"),
        _text("layer", end + 20, 20),
        _text("end", WIDTH - 8, 20, anchor="end"),
        _text("steps", end + 20, frame.height - 12),
    ]
    for tick in range(5):
        value = frame.low + (frame.high - frame.low) * tick / 4
        step = frame.first + (frame.last - frame.first) * tick / 4
        x, y = frame.place(step, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y}" y2="{y}"/>')
        parts.append(_text(frame.words(value), LEFT - 8, y + 4, anchor="end"))
        parts.append(_text(f"{step:.0f}", x, frame.height - 12, anchor="middle"))
    return "".join(parts)


def _text(words: str, x: float, y: float, style: str = "tick", *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
