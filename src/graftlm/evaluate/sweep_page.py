"""A sweep as a page of tables and as a picture: every seed a dot, the mean a bar, the commonest class a dashed line."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from graftlm.evaluate.sweeps import MEAN, Cell, Comparison, Summary

_ROW, _TOP, _LEFT, _PANEL, _GAP, _BOTTOM = 22, 40, 210, 190, 24, 30
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.t{font-size:11px;fill:#666}.g{stroke:#ddd}"
    ".m{stroke:#999;stroke-dasharray:4 3}"
    ".d{fill:#3b76b0;fill-opacity:.55}.b{stroke:#12395f;stroke-width:2.5}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.t{fill:#aaa}.g{stroke:#444}.b{stroke:#9cc4ea}}"
)


def page(title: str, summary: Summary, *, command: str, notes: tuple[str, ...] = (), picture: str = "") -> str:
    """The tables as Markdown. `command`: what makes them anew; `picture`: the file that is shown."""
    parts = [f"# {title}", f"Made by `{command}`; every run is a line of the `.jsonl` file beside this page."]
    parts += [*notes, _scores(summary), _legend(summary)]
    if picture:
        parts.append(f"![Accuracy of every method and seed]({picture})")
    if summary.comparisons:
        parts += ["## Against the base", _comparisons(summary)]
    parts += ["## Cost, and what was chosen", _costs(summary)]
    return "\n\n".join(parts) + "\n"


def _scores(summary: Summary) -> str:
    lines = ["| method | " + " | ".join([*summary.datasets, MEAN]) + " |", "|---" * (len(summary.datasets) + 2) + "|"]
    shares = [summary.majority(dataset) for dataset in summary.datasets]
    lines.append("| commonest class | " + " | ".join(f"{share:.1f}" for share in [*shares, _mean(shares)]) + " |")
    for method in summary.methods:
        cells = [summary.cells.get((method, dataset)) for dataset in summary.datasets]
        whole = [cell.mean for cell in cells if cell is not None]
        mean = f"{_mean(whole):.1f}" if len(whole) == len(cells) else ""
        lines.append(f"| {method} | " + " | ".join([*map(_score, cells), mean]) + " |")
    return "\n".join(lines)


def _score(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{cell.mean:.1f} ± {cell.deviation:.1f}"
    text = f"**{text}**" if cell.is_above_majority else text
    return f"{text} ({cell.failed} failed)" if cell.failed else text


def _legend(summary: Summary) -> str:
    sizes = {
        dataset: next(cell for (_, name), cell in summary.cells.items() if name == dataset)
        for dataset in summary.datasets
    }
    rows = ", ".join(f"{name} {cell.hits.shape[1]:,}" for name, cell in sizes.items())
    seeds = sorted({len(cell.by_seed) for cell in summary.cells.values()})
    return (
        f"Accuracy in percent, mean ± standard deviation over {' or '.join(map(str, seeds))} seeds; rows reported: "
        f"{rows}. "
        "Bold: the 95 % interval over rows and seeds lies above the commonest class."
    )


def _comparisons(summary: Summary) -> str:
    columns = [*summary.datasets, MEAN]
    found = {(one.method, one.dataset): one for one in summary.comparisons}
    pairs = dict.fromkeys((one.method, one.base) for one in summary.comparisons)
    lines = ["| method over base | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, base in pairs:
        cells = [_difference(found.get((method, dataset))) for dataset in columns]
        lines.append(f"| {method} over {base} | " + " | ".join(cells) + " |")
    note = (
        "Points of accuracy with 95 % intervals of the paired bootstrap over rows and seeds; bold where zero lies "
        "outside. A mean is over the datasets that both were run on, and has its p."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _difference(one: Comparison | None) -> str:
    if one is None:
        return ""
    low, high = one.ends
    text = f"{one.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    text = f"**{text}**" if low > 0 or high < 0 else text
    return f"{text}, p = {one.p:.3f}" if one.dataset == MEAN else text


def _costs(summary: Summary) -> str:
    heads = ["method", "stored", "touched", "training, s", "whole run, s", "chosen on dev rows"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method in summary.methods:
        rates = summary.rates.get(method, {})
        if rates:
            numbers = [f"{rates['stored']:,.0f}", f"{rates['touched']:,.0f}"]
            numbers += [f"{rates['train_s']:.0f}", f"{rates['seconds']:.0f}"]
            lines.append(f"| {method} | " + " | ".join([*numbers, _chosen(summary, method)]) + " |")
    return "\n".join(lines)


def _chosen(summary: Summary, method: str) -> str:
    found = {dataset: summary.choices.get((method, dataset)) for dataset in summary.datasets}
    texts = (f"{dataset}: {_words(choice)}" for dataset, choice in found.items() if choice)
    return "; ".join(texts)


def _words(choice: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.partition('.')[2]} {value}" for key, value in choice.items())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def drawing(title: str, summary: Summary) -> str:
    """The picture as SVG: one panel a dataset, one row a method."""
    width = _LEFT + len(summary.datasets) * (_PANEL + _GAP)
    height = _TOP + _ROW * len(summary.methods) + _BOTTOM
    parts = [
        f'<text x="{_LEFT - 10}" y="{_y(row) + 4}" text-anchor="end">{escape(method)}</text>'
        for row, method in enumerate(summary.methods)
    ]
    for place, dataset in enumerate(summary.datasets):
        parts.append(_panel(summary, dataset, _LEFT + place * (_PANEL + _GAP)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _y(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _panel(summary: Summary, dataset: str, left: float) -> str:
    cells = {method: summary.cells.get((method, dataset)) for method in summary.methods}
    values = [value for cell in cells.values() if cell is not None for value in cell.by_seed.values()]
    share = summary.majority(dataset)
    low, high = min([*values, share]) - 2, max([*values, share]) + 2
    bottom = _TOP + _ROW * len(summary.methods)

    def x(value: float) -> float:
        return round(left + _PANEL * (value - low) / (high - low), 1)

    parts = [f'<text x="{left + _PANEL / 2}" y="{_TOP - 16}" text-anchor="middle">{escape(dataset)}</text>']
    for value in (low + 2, (low + high) / 2, high - 2):
        parts.append(f'<line class="g" x1="{x(value)}" x2="{x(value)}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="t" x="{x(value)}" y="{bottom + 16}" text-anchor="middle">{value:.0f}</text>')
    parts.append(f'<line class="m" x1="{x(share)}" x2="{x(share)}" y1="{_TOP - 8}" y2="{bottom}"/>')
    for row, cell in enumerate(cells.values()):
        if cell is not None:
            y = _y(row)
            parts += [f'<circle class="d" cx="{x(value)}" cy="{y}" r="4"/>' for value in cell.by_seed.values()]
            parts.append(f'<line class="b" x1="{x(cell.mean)}" x2="{x(cell.mean)}" y1="{y - 7}" y2="{y + 7}"/>')
    return "".join(parts)
