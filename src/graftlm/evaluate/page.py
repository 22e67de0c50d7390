"""The report as one self-contained HTML page: numbers, controls, the training curve, and photos with their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from graftlm.data.media import load_image
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media
from graftlm.errors import BadSampleError
from graftlm.evaluate.curve import at_shots, curve, shots_curve
from graftlm.evaluate.inline import jpeg_data
from graftlm.evaluate.layers import layer_pictures
from graftlm.evaluate.reading import AnswerReading
from graftlm.evaluate.reading_picture import reading_section

if TYPE_CHECKING:
    from graftlm.evaluate.metrics.bootstrap import Interval
    from graftlm.evaluate.report import Report
    from graftlm.evaluate.task import Row

PHOTO_PX, FOUND_PX = 224, 96
SHOWN = 12
_REFERENCES = 5
_LAYERS_HINT = "figures that the system logs by layer, over training"
_TEMPLATE = Path(__file__).with_name("page.html")
_UNITS = {
    "distinct": "different answers",
    "mean length": "words",
}
_CONTROL_WORDS = {
    "blind": "every picture black",
    "shuffled": "every picture another sample's",
    "text-only": "no picture",
}


def page(
    report: Report,
    samples: Sequence[Sample],
    *,
    training: Sequence[Mapping[str, Any]] = (),
    readings: Sequence[AnswerReading] = (),
) -> str:
    """The page's HTML; nothing in it is loaded from anywhere.

    Args:
        samples: those evaluated, found by key
        training: rows of a run's metrics.jsonl; without them there is no curve
        readings: what some answers read
    """
    by_key = {sample.key: sample for sample in samples}
    over_shots = shots_curve(report.headline, report.metrics, report.intervals, report.controls, report.baselines)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{report.graft or 'evaluation'}: {report.task}"),
        graft=escape(report.graft or "unnamed graft"),
        task=escape(report.task),
        facts=_facts(report),
        tiles="".join(_tile(report, name) for name in _tile_names(report)),
        table=_table(report),
        notes="".join(f"<p class='note'>{escape(note)}</p>" for note in report.notes),
        curve="".join(
            (
                _drawn("Shots", over_shots),
                _drawn("Training", curve(training)),
                _drawn(f"Layers <small>{_LAYERS_HINT}</small>", layer_pictures(training)),
                reading_section(readings),
            )
        ),
        samples="".join(_group(title, hint, rows, report, by_key) for title, hint, rows in pick(report)),
        versions=escape(", ".join(f"{name} {version}" for name, version in report.versions.items())),
        config_hash=escape(report.config_hash),
    )


def _drawn(title: str, drawing: str) -> str:
    return f"<section><h2>{title}</h2><div class='card'>{drawing}</div></section>" if drawing else ""


def pick(report: Report) -> list[tuple[str, str, list[Row]]]:
    """Title, hint and rows of what is shown: the best, the worst, and some drawn by the report's seed."""
    rows = report.best_first()
    by = f"by {report.headline} of the sample"
    shown = "; the photo sought, then the first found, the right one framed" if any(row.found for row in rows) else ""
    if len(rows) <= SHOWN:
        return [("All samples", by + shown, rows)] if rows else []
    return [
        ("Drawn at random", f"read these first: nobody chose them{shown}", report.drawn(SHOWN)),
        ("Best", by, rows[:SHOWN]),
        ("Worst", by, rows[: -SHOWN - 1 : -1]),
    ]


def _facts(report: Report) -> str:
    rate = len(report.rows) / report.answer_seconds if report.answer_seconds else 0.0
    facts = [
        f"{report.n:,} samples",
        f"seed {report.seed}",
        f"{report.seconds:.0f} s with controls",
        f"{rate:.1f} answers a second" if rate else "",
    ]
    return "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)


def _tile_names(report: Report) -> list[str]:
    over_shots = [f"{report.headline}@{shots:.0f}" for shots, _ in at_shots(report.headline, report.metrics)]
    wanted = [
        report.headline,
        *over_shots,
        "BLEU-4",
        "ROUGE-L",
        "METEOR",
        "BLEU-1",
        "t2i R@1",
        "i2t R@1",
        "t2i R@1 (5 captions)",
    ]
    return [name for name in dict.fromkeys(wanted) if name in report.metrics][:4]


def _tile(report: Report, name: str) -> str:
    value = report.metrics[name]
    ends = report.intervals.get(name)
    blind = report.controls.get("blind", {}).get(name)
    top = max([value, blind or 0.0, ends[1] if ends else 0.0, 1e-9]) * 1.1
    whisker = _whisker(ends, top) if ends else ""
    below = f"<div class='bar blind'><b style='width:{_share(blind, top)}'></b></div>" if blind is not None else ""
    words = [f"95 % interval {ends[0]:.1f} to {ends[1]:.1f}"] if ends else []
    words += [f"blind {blind:.1f}"] if blind is not None else []
    return (
        f"<div class='card tile'><h3>{escape(name)}</h3><strong>{value:.1f}</strong>"
        f"<div class='bar'><b style='width:{_share(value, top)}'></b>{whisker}</div>{below}"
        f"<p>{escape('; '.join(words))}</p></div>"
    )


def _whisker(ends: Interval, top: float) -> str:
    return f"<i class='whisker' style='left:{_share(ends[0], top)};right:{_share(top - ends[1], top)}'></i>"


def _share(value: float, top: float) -> str:
    return f"{100 * max(0.0, value) / top:.1f}%"


def _table(report: Report) -> str:
    others = [(name, "beside it", values) for name, values in report.baselines.items()]
    others += [(name, _CONTROL_WORDS.get(name, ""), values) for name, values in report.controls.items()]
    heads = "".join(f"<th>{escape(name)}<small>{escape(words)}</small></th>" for name, words, _ in others)
    rows = "".join(_table_row(report, name, [values for *_, values in others]) for name in report.metrics)
    return (
        "<table><thead><tr><th>metric</th><th>score<small>percent</small></th><th>95 % interval<small>bootstrap</small>"
        f"</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _table_row(report: Report, name: str, columns: Iterable[Mapping[str, float]]) -> str:
    ends = report.intervals.get(name)
    digits = 0 if name == "distinct" else 1
    cells = [_number(values.get(name), digits) for values in columns]
    words = "1 is best" if "median rank" in name else _UNITS.get(name)
    unit = f"<small>{words}</small>" if words else ""
    interval = f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""
    others = "".join(f"<td class='other'>{cell}</td>" for cell in cells)
    return (
        f"<tr><th>{escape(name)} {unit}</th><td><b>{_number(report.metrics[name], digits)}</b></td><td>{interval}</td>"
        f"{others}</tr>"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _group(title: str, hint: str, rows: Sequence[Row], report: Report, samples: Mapping[str, Sample]) -> str:
    cards = "".join(_card(row, report, samples) for row in rows)
    return f"<section><h2>{escape(title)} <small>{escape(hint)}</small></h2><div class='photos'>{cards}</div></section>"


def _card(row: Row, report: Report, samples: Mapping[str, Sample]) -> str:
    pictures = _pictures(samples.get(row.sample or row.key), row.key, PHOTO_PX)
    prompt = f"<p class='prompt'>{escape(row.prompt.strip())}</p>" if row.prompt.strip() else ""
    references = "".join(f"<li>{escape(text)}</li>" for text in row.references[:_REFERENCES])
    score = row.scores.get(report.headline)
    badge = f"<span class='badge'>{escape(report.headline)} {score:.0f}</span>" if score is not None else ""
    answer = escape(row.prediction) or "<em>nothing</em>"
    if row.found:
        answer = f"rank {row.scores['rank']:.0f}" if "rank" in row.scores else ""
        references = "".join(_found(key, key in row.references, samples) for key in row.found)
    return (
        f"<article class='card photo'><div class='shot'>{pictures}{badge}</div>{prompt}<p class='answer'>{answer}</p>"
        f"<ul{' class=found' if row.found else ''}>{references}</ul><footer>{escape(row.key)}</footer></article>"
    )


def _found(key: str, is_right: bool, samples: Mapping[str, Sample]) -> str:
    """One picture that was found."""
    return f"<li{' class=right' if is_right else ''}>{_pictures(samples.get(key), key, FOUND_PX)}</li>"


def _pictures(sample: Sample | None, key: str, size: int) -> str:
    parts = sample.sentence.prompt() if sample else ()
    return "".join(_picture(part.source, key, size) for part in parts if isinstance(part, Image))


def _picture(source: Media, key: str, size: int) -> str:
    try:
        picture = load_image(source)
    except BadSampleError as error:
        return f"<p class='note'>{escape(str(error))}</p>"
    picture.thumbnail((size, size))
    return f"<img alt='{escape(key)}' loading='lazy' src='{jpeg_data(picture)}'>"
