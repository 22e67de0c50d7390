"""Photos with their words below, many on one picture: the quickest way to see what a data set is.

The photos of one document stand side by side in their order, with a line above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.Image import Image as PILImage

from graftlm.errors import DataError

_PHOTO = (208, 156)
_GAP = 16
_LINES = 4
_LINE_HEIGHT = 17
_FONT_SIZE = 13
_TITLE_SIZE = 18
_MARGIN = 24
_HEADER = 40
_MAX_COLUMNS = 8
_PAPER, _FRAME = "#ffffff", "#f1f1ef"
_INK, _GREY, _TITLE = "#1c1c1c", "#7d7d7a", "#000000"


@dataclass(frozen=True, slots=True)
class Tile:
    """One photo; `given` words are printed grey, `wanted` words (the target) dark."""

    photo: PILImage
    given: str
    wanted: str


def thumbnail(picture: PILImage) -> PILImage:
    """The whole picture, shrunk or enlarged to fit a tile."""
    return ImageOps.contain(picture, _PHOTO, Image.Resampling.LANCZOS)


def mosaic(frames: Sequence[PILImage]) -> PILImage:
    """Frames of a film as one picture, two in a row; one alone as it is."""
    columns = min(2, len(frames))
    width, height = frames[0].size
    together = Image.new("RGB", (columns * width, ceil(len(frames) / columns) * height), _FRAME)
    for number, frame in enumerate(frames):
        together.paste(frame.resize((width, height)), (number % columns * width, number // columns * height))
    return together


def draw(groups: Sequence[Sequence[Tile]], title: str, path: Path) -> Path:
    """Draws the sheet as a PNG, a group for each sample, and returns its path.

    Raises: DataError when it cannot be written.
    """
    places, columns, rows = _arranged([len(group) for group in groups])
    width, height = _PHOTO[0] + _GAP, _PHOTO[1] + _LINES * _LINE_HEIGHT + _GAP + 8
    size = (2 * _MARGIN + columns * width - _GAP, _MARGIN + _HEADER + rows * height)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), _fitting(title, size[0] - 2 * _MARGIN), fill=_TITLE, font=_font(_TITLE_SIZE))
    for (column, row), tile in zip(places, (tile for group in groups for tile in group), strict=True):
        _place(sheet, pen, tile, _MARGIN + column * width, _MARGIN + _HEADER + row * height)
    first = 0
    for group in groups if any(len(group) > 1 for group in groups) else ():
        for row in sorted({row for _, row in places[first : first + len(group)]}):
            taken = [column for column, own in places[first : first + len(group)] if own == row]
            top = _MARGIN + _HEADER + row * height - _GAP // 2
            line = (_MARGIN + min(taken) * width, top, _MARGIN + (max(taken) + 1) * width - _GAP - 1, top)
            pen.line(line, fill=_INK, width=2)
        first += len(group)
    return _save(sheet, path)


def _arranged(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Column and row of every photo of groups of these sizes, and how many columns and rows there are.

    A group stays on one row where it fits; one of more than a row goes on below.
    """
    largest = min(_MAX_COLUMNS, max(sizes))
    square = ceil((sum(sizes) * 4 / 3) ** 0.5)
    columns = min(_MAX_COLUMNS // largest * largest, max(largest, square // largest * largest))
    places: list[tuple[int, int]] = []
    column, row = 0, 0
    for size in sizes:
        if column and (column + largest > columns or size > columns):
            column, row = 0, row + 1
        places += [((column + place) % columns, row + (column + place) // columns) for place in range(size)]
        column, row = column + ceil(size / largest) * largest, row
        row, column = row + column // columns, column % columns
    return places, columns, row + bool(column)


def _place(sheet: PILImage, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    pen.rectangle((left, top, left + _PHOTO[0] - 1, top + _PHOTO[1] - 1), fill=_FRAME)
    inside = ((_PHOTO[0] - tile.photo.width) // 2, (_PHOTO[1] - tile.photo.height) // 2)
    sheet.paste(tile.photo, (left + inside[0], top + inside[1]))
    font = _font(_FONT_SIZE)
    words = [(word, _GREY) for word in tile.given.split()] + [(word, _INK) for word in tile.wanted.split()]
    for number, line in enumerate(_wrapped(words, font)):
        place = float(left)
        for word, colour in line:
            pen.text((place, top + _PHOTO[1] + 6 + number * _LINE_HEIGHT), word, fill=colour, font=font)
            place += font.getlength(word + " ")


def _wrapped(words: Sequence[tuple[str, str]], font: ImageFont.FreeTypeFont) -> list[list[tuple[str, str]]]:
    """Words with their colours as lines that fit under a photo; what is too much ends in dots."""
    lines: list[list[tuple[str, str]]] = [[]]
    for word, colour in words:
        line = " ".join(text for text, _ in lines[-1])
        if lines[-1] and font.getlength(f"{line} {word}") > _PHOTO[0]:
            lines.append([])
        lines[-1].append((_cut(word, font, _PHOTO[0]), colour))
    if len(lines) > _LINES:
        lines = lines[:_LINES]
        text, colour = lines[-1][-1]
        while len(lines[-1]) > 1 and font.getlength(" ".join(word for word, _ in lines[-1]) + "...") > _PHOTO[0]:
            lines[-1].pop()
            text, colour = lines[-1][-1]
        lines[-1][-1] = (_cut(f"{text}...", font, _PHOTO[0]), colour)
    return lines


def _cut(word: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while len(word) > 1 and font.getlength(word) > width:
        word = word[: max(1, len(word) * 9 // 10)]
    return word


def _fitting(title: str, width: int) -> str:
    return _cut(title, _font(_TITLE_SIZE), width)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType is not installed from a wheel
    return font


def _save(sheet: PILImage, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        sheet.save(partial, format="PNG", optimize=True)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the contact sheet ({error.strerror}); choose another path") from None
    return path
