"""The demonstration's results: a table in the terminal, and one self-contained page with pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from rich.console import Console
from rich.table import Table
from rich.text import Text as Styled

from graftlm.data.sentence import Image
from graftlm.demo.run import Answered, Outcome, Photo
from graftlm.evaluate import page as evaluation_page
from graftlm.evaluate.curve import curve
from graftlm.evaluate.run import versions
from graftlm.storage import replace_file

_TEMPLATE = Path(__file__).with_name("report.html")
_SHOWN_IN_TERMINAL = 8
_SHOWN_ON_PAGE = 24
_NAMES = {
    "after": ("after training", "the graft, with the pictures"),
    "before": ("before training", "the same graft with its first random weights"),
    "blind": ("blind", "the trained graft, every picture black"),
}


def print_outcome(outcome: Outcome, console: Console | None = None) -> None:
    """The results as a table: some held-out answers, the accuracy, the proof."""
    console = console or Console()
    table = Table(title="Held-out scenes, never seen in training", title_justify="left", title_style="bold")
    for name in ("scene", "before", "after", "blind"):
        table.add_column(name, overflow="fold")
    for row in spread(outcome.answered, _SHOWN_IN_TERMINAL):
        cells = [_styled(answer, row.reference) for answer in (row.before, row.after, row.blind)]
        table.add_row(f"{_asked(row)}{row.reference}", *cells)
    table.add_section()
    accuracy = outcome.accuracy()
    table.add_row(
        f"exactly right of {len(outcome.answered)}",
        *(Styled(f"{accuracy[name]:.1f} %", style="bold") for name in ("before", "after", "blind")),
    )
    console.print(table)
    console.print(_proof(outcome), highlight=False)
    console.print(_effort(outcome), highlight=False)


def write_report(outcome: Outcome, path: Path) -> Path:
    """Writes the page and returns its path; nothing in it is loaded from anywhere."""
    accuracy = outcome.accuracy()
    wrong = [row for row in outcome.answered if row.after != row.reference]
    shown = spread(outcome.answered, _SHOWN_ON_PAGE)
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=_style(),
        facts="".join(f"<span>{escape(fact)}</span>" for fact in _facts(outcome)),
        tiles="".join(_tile(name, accuracy[name]) for name in _NAMES),
        proof=escape(_proof(outcome)),
        digests=escape(f"before {outcome.frozen[0]}\nafter  {outcome.frozen[1]}"),
        verdict="unchanged" if outcome.frozen_unchanged else "changed",
        photos=_photos(outcome.photos, outcome.note),
        scenes="".join(_card(row) for row in shown),
        count=len(shown),
        wrong=_wrong(wrong[:_SHOWN_ON_PAGE], len(wrong), len(outcome.answered)),
        curve=curve(outcome.metrics) or "<p class='note'>The run was too short for a curve.</p>",
        recipe=escape(outcome.recipe.to_yaml()),
        versions=escape(", ".join(f"{name} {version}" for name, version in versions().items())),
    )
    replace_file(path, text.encode())
    return path


def spread(rows: Sequence[Answered], wanted: int) -> list[Answered]:
    """At most `wanted` rows, evenly spread: nobody chose them."""
    count = min(wanted, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _facts(outcome: Outcome) -> list[str]:
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in outcome.seconds.items())
    return [
        f"{outcome.training.trainable_parameters / 1e6:.1f} M trained parameters",
        f"{outcome.training.steps:,} steps, {outcome.training.sentences:,} captions",
        f"seed {outcome.seed}",
        seconds,
    ]


def _proof(outcome: Outcome) -> str:
    if outcome.frozen_unchanged:
        return f"Every byte of the language model and the encoder is what it was (SHA-256 {outcome.frozen[0][:16]}...)."
    before, after = (digest[:16] for digest in outcome.frozen)
    return f"The frozen parts have changed: SHA-256 {before}... before, {after}... after."


def _effort(outcome: Outcome) -> str:
    training = outcome.training
    return (
        f"Trained: {training.trainable_parameters:,} parameters, {training.steps} steps, {training.seconds:.0f} s. "
        f"All in all {sum(outcome.seconds.values()):.0f} s. Graft: {training.graft}"
    )


def _styled(answer: str, reference: str) -> Styled:
    return Styled(answer or "(nothing)", style="green" if answer == reference else "dim")


def _asked(row: Answered) -> str:
    words = row.sample.sentence.prompt().text().strip()
    return f"{words} " if words else ""


def _style() -> str:
    """The style sheet of the evaluation's page: one look for all pages."""
    template = Path(evaluation_page.__file__).with_name("page.html").read_text(encoding="utf-8")
    found = re.search(r"<style>(.*?)</style>", template, re.DOTALL)
    return found[1] if found else ""


def _tile(name: str, value: float) -> str:
    title, hint = _NAMES[name]
    kind = "bar blind" if name == "blind" else "bar"
    return (
        f"<div class='card tile'><h3>{title}</h3><strong>{value:.1f} %</strong>"
        f"<div class='{kind}'><b style='width:{value:.1f}%'></b></div><p>{hint}</p></div>"
    )


def _photos(photos: Sequence[Photo], note: str) -> str:
    if not photos:
        return f"<p class='note'>{escape(note)}</p>"
    cards = (
        f"<article class='card photo'><div class='shot'>{_img(photo.path.read_bytes(), 'jpeg', photo.path.name)}</div>"
        f"<p class='answer'>{escape(photo.caption)}</p><footer>{escape(photo.path.name)}</footer></article>"
        for photo in photos
    )
    return f"<div class='photos'>{''.join(cards)}</div>"


def _wrong(rows: Sequence[Answered], wrong: int, total: int) -> str:
    if not wrong:
        return ""
    hint = f"{wrong} of {total}" + (f", the first {len(rows)}" if wrong > len(rows) else "")
    cards = "".join(_card(row) for row in rows)
    return f"<section><h2>What it gets wrong <small>{hint}</small></h2><div class='photos'>{cards}</div></section>"


def _card(row: Answered) -> str:
    right = row.after == row.reference
    pictures = (part for part in row.sample.sentence.prompt() if isinstance(part, Image))
    shot = "".join(_img(part.source, "png", row.sample.key) for part in pictures if isinstance(part.source, bytes))
    prompt = f"<p class='prompt'>{escape(_asked(row))}</p>" if _asked(row) else ""
    answers = [("before", row.before), ("blind", row.blind)]
    if not right:
        answers.insert(0, ("right", row.reference))
    lines = "".join(f"<li><b>{name}</b> {escape(text) or '<em>nothing</em>'}</li>" for name, text in answers)
    answer = f"<p class='answer {'right' if right else 'wrong'}'>{escape(row.after) or '<em>nothing</em>'}</p>"
    return f"<article class='card photo'><div class='shot'>{shot}</div>{prompt}{answer}<ul>{lines}</ul></article>"


def _img(data: bytes, kind: str, name: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f"<img alt='{escape(name)}' loading='lazy' src='data:image/{kind};base64,{encoded}'>"
