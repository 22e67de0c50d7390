"""The training curve of a run as an inline SVG: loss over steps, validation and its blind control beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

Points: TypeAlias = list[tuple[float, float]]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 250, 48, 34, 14, 26
_LINES = (("train", "loss", "training"), ("val", "loss", "validation"), ("val", "blind", "validation, blind"))
_MAX_POINTS = 400


def curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the losses in rows of metrics.jsonl; empty where there are fewer than two points of a line."""
    series = [(label, _points(rows, event, key)) for event, key, label in _LINES]
    series = [(label, points) for label, points in series if len(points) > 1]
    if not series:
        return ""
    everything = [point for _, points in series for point in points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    frame = (min(xs), max(xs), *_range(min(ys), max(ys)))
    marks = "".join(_line(number, points, frame) for number, (_, points) in enumerate(series))
    legend = "".join(
        f'<g transform="translate({LEFT + 12 + 150 * number},{TOP + 6})"><line class="s{number}" x2="18"/>'
        f'<text x="24" y="4">{escape(label)}</text></g>'
        for number, (label, _) in enumerate(series)
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="training curve">'
        f"{_axes(frame)}{marks}{legend}</svg>"
    )


def _points(rows: Sequence[Mapping[str, Any]], event: str, key: str) -> Points:
    found = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if row.get("event") == event and isinstance(row.get(key), int | float)
    ]
    stride = max(1, len(found) // _MAX_POINTS)
    return found[::stride] + ([found[-1]] if found and (len(found) - 1) % stride else [])


def _range(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def _place(point: tuple[float, float], frame: tuple[float, float, float, float]) -> tuple[float, float]:
    left, right, low, high = frame
    x = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - left) / ((right - left) or 1)
    y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (point[1] - low) / ((high - low) or 1)
    return round(x, 1), round(y, 1)


def _line(number: int, points: Points, frame: tuple[float, float, float, float]) -> str:
    path = " ".join(f"{x},{y}" for x, y in (_place(point, frame) for point in points))
    return f'<polyline class="s{number}" points="{path}"/>'


def _axes(frame: tuple[float, float, float, float]) -> str:
    left, right, low, high = frame
    parts = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        _, y = _place((left, value), frame)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.2f}</text>')
        step = left + (right - left) * tick / 4
        x, _ = _place((step, low), frame)
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{step:.0f}</text>')
    parts.append(f'<text class="tick" x="{LEFT + 8}" y="{HEIGHT - BOTTOM - 8}">loss over steps</text>')
    return "".join(parts)
