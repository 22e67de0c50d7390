"""Curves as inline SVG: a run's losses over its steps, and scores over shots with their controls beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from graftlm.evaluate.metrics.bootstrap import Interval

Points: TypeAlias = list[tuple[float, float]]
Frame: TypeAlias = tuple[float, float, float, float]
"""Least and greatest x, least and greatest y."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 250, 48, 34, 14, 26
_LINES = (("train", "loss", "training"), ("val", "loss", "validation"), ("val", "blind", "validation, blind"))
_CONTROL_STYLES = {"blind": 2, "shuffled": 0, "text-only": 3}
_OTHER_STYLE = 4
_MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its style in the page (``s0``, ``s1`` ...), its name, its points, and the interval at some x."""

    style: int
    label: str
    points: Points
    intervals: Mapping[float, Interval]


def curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the losses in rows of metrics.jsonl; empty where there are fewer than two points of a line."""
    found = [(label, points_of(rows, event, key)) for event, key, label in _LINES]
    lines = [Series(number, label, points, {}) for number, (label, points) in enumerate(found) if len(points) > 1]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ticks = [min(xs) + (max(xs) - min(xs)) * tick / 4 for tick in range(5)]
    return _drawing(lines, ticks, "loss over steps", "training curve", digits=2)


def shots_curve(
    name: str,
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    controls: Mapping[str, Mapping[str, float]],
    others: Mapping[str, Mapping[str, float]],
) -> str:
    """SVG of a metric ("CIDEr@0", "CIDEr@4" ...) over its numbers of shots; empty where there are fewer than two.

    `controls` and `others` (systems beside it) hold the same metrics by their own names.
    """
    points = at_shots(name, metrics)
    if len(points) < 2:
        return ""
    ends = {float(x): intervals[f"{name}@{x:.0f}"] for x, _ in points if f"{name}@{x:.0f}" in intervals}
    lines = [Series(_CONTROL_STYLES.get(one, 0), one, at_shots(name, found), {}) for one, found in controls.items()]
    lines += [
        Series(_OTHER_STYLE + place, one, at_shots(name, found), {})
        for place, (one, found) in enumerate(others.items())
    ]
    lines = [Series(1, name, points, ends), *(line for line in lines if line.points)]
    return _drawing(lines, [x for x, _ in points], f"{name} over shots", f"{name} over shots", digits=0, dots=True)


def at_shots(name: str, metrics: Mapping[str, float]) -> Points:
    """Number of shots and value of every "name@number" among metrics, by number."""
    found = ((re.fullmatch(rf"{re.escape(name)}@(\d+)", metric), value) for metric, value in metrics.items())
    return sorted((float(match[1]), value) for match, value in found if match)


def points_of(rows: Sequence[Mapping[str, Any]], event: str, key: str) -> Points:
    """Step and value of every row of an event that has it, thinned where there are very many; the last is kept."""
    found = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if row.get("event") == event and isinstance(row.get(key), int | float)
    ]
    stride = max(1, len(found) // _MAX_POINTS)
    return found[::stride] + ([found[-1]] if found and (len(found) - 1) % stride else [])


def _drawing(
    lines: Sequence[Series], ticks: Sequence[float], words: str, label: str, *, digits: int, dots: bool = False
) -> str:
    """The picture: grid, lines, and a legend in the lines' order."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [
        y
        for line in lines
        for y in (*(y for _, y in line.points), *(end for ends in line.intervals.values() for end in ends))
    ]
    frame = (min(xs), max(xs), *_range(min(ys), max(ys)))
    step = min(150, (WIDTH - LEFT - RIGHT - 12) // len(lines))
    legend = "".join(
        f'<g transform="translate({LEFT + 12 + step * place},{TOP + 6})"><line class="s{line.style}" x2="18"/>'
        f'<text x="24" y="4">{escape(line.label)}</text></g>'
        for place, line in enumerate(lines)
    )
    marks = "".join(_line(line, frame, dots=dots) for line in lines)
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{_axes(frame, ticks, words, digits)}{marks}{legend}</svg>"
    )


def _range(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def _place(point: tuple[float, float], frame: Frame) -> tuple[float, float]:
    left, right, low, high = frame
    x = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - left) / ((right - left) or 1)
    y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (point[1] - low) / ((high - low) or 1)
    return round(x, 1), round(y, 1)


def _line(line: Series, frame: Frame, *, dots: bool) -> str:
    places = [_place(point, frame) for point in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    found = [f'<polyline class="s{line.style}" points="{path}"/>']
    for x, (low, high) in line.intervals.items():
        (at, bottom), (_, top) = _place((x, low), frame), _place((x, high), frame)
        found.append(f'<line class="s{line.style}" x1="{at}" x2="{at}" y1="{bottom}" y2="{top}"/>')
    if dots:
        found += [f'<circle class="s{line.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
    return "".join(found)


def _axes(frame: Frame, ticks: Sequence[float], words: str, digits: int) -> str:
    left, _, low, high = frame
    parts = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        _, y = _place((left, value), frame)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.{digits}f}</text>')
    for tick_x in ticks:
        x, _ = _place((tick_x, low), frame)
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick_x:.0f}</text>')
    parts.append(f'<text class="tick" x="{LEFT + 8}" y="{HEIGHT - BOTTOM - 8}">{escape(words)}</text>')
    return "".join(parts)
