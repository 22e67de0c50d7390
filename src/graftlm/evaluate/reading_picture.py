"""What the words of answers read, as a piece of a page: every word over the picture that it read most, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from torch import Tensor

from graftlm.data.media import load_image
from graftlm.data.sentence import Image, MediaPart, Video
from graftlm.data.video import Sampling, load_frames
from graftlm.errors import GraftError
from graftlm.evaluate.inline import jpeg_data
from graftlm.evaluate.reading import AnswerReading

PHOTO_PX = 168
_LEVELS, _DARKEST = 10, 0.72  # darker hides a photo whose cells are read nearly alike
_BAR, _BAR_HEIGHT = 10, 24
_ALL = 0.995  # a share that is written as 100 %
_HINT = (
    "light is what was read in the step that wrote the word, mean over blocks and heads; &times; how much more the "
    "framed cell was read than an even share. Where it looks, not why it says so"
)


def reading_section(readings: Sequence[AnswerReading]) -> str:
    """The section of a page; empty without readings."""
    if not readings:
        return ""
    cards = "".join(_card(number, one) for number, one in enumerate(readings))
    return f"<section><h2>What the words read <small>{_HINT}</small></h2>{cards}</section>"


def veil(grid: Tensor) -> str:
    """SVG paths that darken the cells of a grid (side, side), one unit a cell, the less they were read the more.

    The cell that was read most stays clear; cells of one darkness are one path.
    """
    light = (grid / grid.max().clamp(min=1e-12)).tolist()
    runs: dict[int, list[str]] = {}
    for y, row in enumerate(light):
        levels = [round(_LEVELS * (1 - value)) for value in row]
        x = 0
        while x < len(levels):
            end = next((place for place in range(x, len(levels)) if levels[place] != levels[x]), len(levels))
            runs.setdefault(levels[x], []).append(f"M{x} {y}h{end - x}v1H{x}z")
            x = end
    return "".join(
        f'<path fill-opacity="{_DARKEST * level / _LEVELS:.2f}" d="{"".join(found)}"/>'
        for level, found in sorted(runs.items())
        if level
    )


def frame_of_peak(grid: Tensor) -> str:
    """A frame around the cell of a grid (side, side) that was read most: on a dark photo no veil shows it.

    Empty where all cells were read alike.
    """
    if not grid.numel() or float(grid.max()) <= float(grid.min()):
        return ""
    y, x = divmod(int(grid.argmax()), grid.shape[-1])
    return f"<rect class='peak' x='{x}' y='{y}' width='1' height='1'/>"


def _card(number: int, told: AnswerReading) -> str:
    names = _names(told.media)
    shown = _most_read(told)
    several = range(len(names)) if len(names) > 1 else ()
    used = sorted({place for place in shown if place} | {(item, 0) for item in several})
    stock = _stock(number, told, used)
    strip = "".join(_medium(number, item, names[item], told) for item in several)
    words = "".join(_word(number, place, told, names, shown[place]) for place in range(len(told.words)))
    return (
        f"<article class='card reading'>{stock}{f'<div class=seen>{strip}</div>' if strip else ''}"
        f"<div class='words'>{words}</div><footer>{escape(told.key)}</footer></article>"
    )


def _names(media: Sequence[MediaPart]) -> list[str]:
    """ "picture 1", "film 2" ... in the order of the prompt."""
    kinds = {"Image": "picture", "Video": "film", "Audio": "sound"}
    return [f"{kinds.get(type(part).__name__, 'state')} {number}" for number, part in enumerate(media, start=1)]


def _most_read(told: AnswerReading) -> list[tuple[int, int] | None]:
    """For every word the medium, and the frame of it, that it read most; None where it read nothing."""
    frames = told.grids.sum(dim=(-1, -2))  # (W, n, F)
    found: list[tuple[int, int] | None] = []
    for place in range(len(told.words)):
        item = int(told.items[place].argmax())
        found.append((item, int(frames[place, item].argmax())) if told.items[place, item] > 0 else None)
    return found


def _stock(number: int, told: AnswerReading, used: Sequence[tuple[int, int]]) -> str:
    """Every picture that is shown, held once."""
    side = told.grids.shape[-1] or 1
    held = []
    for item in dict.fromkeys(item for item, _ in used):
        frames = _frames(told.media[item], told.grids.shape[2])
        held += [
            f'<image id="{_id(number, item, frame)}" width="{side}" height="{side}" preserveAspectRatio="none" '
            f'href="{jpeg_data(frames[frame])}"/>'
            for frame in (frame for other, frame in used if other == item and frame < len(frames))
        ]
    return f"<svg class='stock' width='0' height='0' aria-hidden='true'><defs>{''.join(held)}</defs></svg>"


def _frames(part: MediaPart, most: int) -> list[PILImage]:
    """A picture, or the frames of a film, as encoders see them: squashed to a square."""
    try:
        if isinstance(part, Image):
            frames = [load_image(part.source)]
        else:
            frames = load_frames(part.source, Sampling(most)) if isinstance(part, Video) else []
    except GraftError:
        return []  # it was there when it was answered; the shares are still told
    return [frame.resize((PHOTO_PX, PHOTO_PX), Resampling.BICUBIC) for frame in frames]


def _id(number: int, item: int, frame: int) -> str:
    return f"seen-{number}-{item}-{frame}"


def _medium(number: int, item: int, name: str, told: AnswerReading) -> str:
    """One medium of the prompt, with its share of the whole answer."""
    side = told.grids.shape[-1] or 1
    share = float(told.items[:, item].mean()) if told.words else 0.0
    return (
        f"<figure><svg viewBox='0 0 {side} {side}'><use href='#{_id(number, item, 0)}'/></svg>"
        f"<figcaption>{name}<small>{share:.0%}</small></figcaption></figure>"
    )


def _word(number: int, place: int, told: AnswerReading, names: Sequence[str], shown: tuple[int, int] | None) -> str:
    word = f"<figcaption>{escape(told.words[place])}</figcaption>"
    if shown is None:
        return f"<figure>{word}<p>reads nothing</p></figure>"
    item, frame = shown
    grid, side = told.grids[place, item, frame], told.grids.shape[-1] or 1
    peak = ""
    dark = ""
    if grid.numel():
        peak = f"&times; {float(grid.max() / grid.mean().clamp(min=1e-12)):.1f}"
        dark = f"<g class='veil'>{veil(grid)}</g>{frame_of_peak(grid)}"
    which = f"{names[item]}{f', frame {frame + 1}' if told.grids.shape[2] > 1 else ''}"
    is_split = bool(((told.items > 0) & (told.items < _ALL)).any())  # else the bars of all words say the same
    shares = _shares(told.items[place].tolist(), names) if is_split else ""
    said = f"{which} {float(told.items[place, item]):.0%}" if names[1:] else which if told.grids.shape[2] > 1 else ""
    notes = "".join(f"<small>{note}</small>" for note in (said, peak) if note)
    return (
        f"<figure>{word}<svg class='heat' viewBox='0 0 {side} {side}' role='img' "
        f"aria-label='what {escape(told.words[place])} read of {which}'><use href='#{_id(number, item, frame)}'/>{dark}"
        f"</svg>{shares}<p>{notes}</p></figure>"
    )


def _shares(items: Sequence[float], names: Sequence[str]) -> str:
    """A bar for every medium, from the first to the last of the prompt."""
    best = max(items)
    bars = "".join(
        f"<rect class='room' x='{_BAR * number}' width='{_BAR - 2}' height='{_BAR_HEIGHT}'/>"
        f"<rect{' class=most' if share == best else ''} x='{_BAR * number}' y='{_BAR_HEIGHT * (1 - share):.1f}' "
        f"width='{_BAR - 2}' height='{_BAR_HEIGHT * share:.1f}'><title>{names[number]}: {share:.0%}</title></rect>"
        for number, share in enumerate(items)
    )
    size = f"{_BAR * len(items) - 2} {_BAR_HEIGHT}"
    return f"<svg class='shares' viewBox='0 0 {size}' preserveAspectRatio='xMinYMid'>{bars}</svg>"
