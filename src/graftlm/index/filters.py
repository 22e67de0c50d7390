"""Conditions on photos: "date>=2023-06", "size>2MB", "folder=holiday", "path=*/beach/*", "author=Ann"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from graftlm.errors import UsageError

Values: TypeAlias = "list[str | float | int]"

_FORM = re.compile(r"\s*([\w][\w .-]*?)\s*(>=|<=|!=|=|>|<|~)\s*(.*?)\s*", re.DOTALL)
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_LONGEST = 10_000
_HELP = "FIELD OPERATOR VALUE with an operator of = != < <= > >= ~, as in 'date>=2023-06' or 'folder=holiday'"


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition as SQL over the table `photos`, with its values apart."""

    sql: str = "1"
    values: tuple[str | float | int, ...] = ()

    def __and__(self, other: Filter) -> Filter:
        if not self.values:
            return other
        return Filter(f"({self.sql}) AND ({other.sql})", self.values + other.values) if other.values else self

    def __bool__(self) -> bool:
        return bool(self.values)


def parse(words: str) -> Filter:
    """One condition. Raises: UsageError when it cannot be understood."""
    found = _FORM.fullmatch(words)
    if not found:
        raise UsageError(f"filter '{words}': expected {_HELP}")
    field, operator, value = found.groups()
    _check(value, words)
    if field in ("path", "name", "folder"):
        return _place(field, operator, value, words)
    if field in ("date", "taken"):
        return _date(operator, value, words)
    if field == "size":
        return _compare("size", operator, _bytes(value, words), words)
    return _metadata(field, operator, value, words)


def parse_all(conditions: Sequence[str]) -> Filter:
    """All conditions at once. Raises: UsageError."""
    whole = Filter()
    for words in conditions:
        whole = whole & parse(words)
    return whole


def without_paths(pattern: str) -> Filter:
    """Everything but the photos whose path fits a pattern. Raises: UsageError."""
    _check(pattern, pattern)
    place = _place("path", "=", pattern, pattern)
    return Filter(f"NOT ({place.sql})", place.values)


def under(folder: Path) -> Filter:
    """The photos of one folder and of those below it."""
    low, high = below(folder)
    return Filter("path >= ? AND path < ?", (low, high))


def below(folder: Path) -> tuple[str, str]:
    """Ends of the range of paths that lie under a folder."""
    start = str(folder).rstrip("/")
    return f"{start}/", f"{start}0"  # "0" is the character after "/"


def is_unicode(text: str) -> bool:
    """Whether a text can be read: what a shell hands over may be other bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check(value: str, words: str) -> None:
    """Raises: UsageError for what SQLite refuses."""
    if len(value) > _LONGEST or not is_unicode(value):
        raise UsageError(f"filter '{words[:40]}': expected a value of up to {_LONGEST:,} characters of UTF-8")


def _place(field: str, operator: str, value: str, words: str) -> Filter:
    if operator == "~":
        return Filter("instr(lower(path), lower(?)) > 0", (value,))
    if operator not in ("=", "!="):
        raise UsageError(f"filter '{words}': {field} is compared with =, != or ~ (contains), found '{operator}'")
    if not value:
        raise UsageError(f"filter '{words}': expected a pattern after '{operator}', found nothing")
    if field == "folder":
        patterns = [f"{value.rstrip('/')}/*"] if value.startswith("/") else [f"*/{value.strip('/')}/*"]
    elif field == "name":
        patterns = [f"*/{value}"]
    else:
        patterns = [value] if value.startswith(("/", "*")) else [f"*/{value}"]
    sql = "path GLOB ?"
    return Filter(sql if operator == "=" else f"NOT ({sql})", tuple(patterns))


def _date(operator: str, value: str, words: str) -> Filter:
    start, end = _period(value, words)
    if operator in ("=", "!="):
        sql = "date >= ? AND date < ?"
        return Filter(sql if operator == "=" else f"NOT ({sql})", (start, end))
    limits = {">": (">=", end), ">=": (">=", start), "<": ("<", start), "<=": ("<", end)}
    if operator not in limits:
        raise UsageError(f"filter '{words}': a date is compared with = != < <= > >=, found '{operator}'")
    sign, limit = limits[operator]
    return Filter(f"date {sign} ?", (limit,))


def _period(value: str, words: str) -> tuple[float, float]:
    """First second, and the one after the last, of a year, a month, a day or a moment."""
    try:
        if re.fullmatch(r"\d{4}", value):
            return _seconds(datetime(int(value), 1, 1)), _seconds(datetime(int(value) + 1, 1, 1))
        if re.fullmatch(r"\d{4}-\d{1,2}", value):
            year, month = (int(number) for number in value.split("-"))
            return _seconds(datetime(year, month, 1)), _seconds(datetime(year + month // 12, month % 12 + 1, 1))
        start = datetime.fromisoformat(value)
        length = timedelta(days=1) if len(value) == 10 else timedelta(seconds=1)
        return _seconds(start), _seconds(start + length)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"filter '{words}': expected a date as 2023, 2023-06 or 2023-06-30, found '{value}'") from None


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


def _bytes(value: str, words: str) -> float:
    found = _SIZE.fullmatch(value)
    if not found or found[2].lower() not in _UNITS:
        raise UsageError(f"filter '{words}': expected a size as 500kB or 2MB, found '{value}'")
    return float(found[1]) * _UNITS[found[2].lower()]


def _compare(column: str, operator: str, value: float, words: str) -> Filter:
    if operator == "~":
        raise UsageError(f"filter '{words}': {column} is a number; compare it with = != < <= > >=")
    return Filter(f"{column} {operator} ?", (value,))


def _metadata(field: str, operator: str, value: str, words: str) -> Filter:
    """A condition on a column of metadata.jsonl; a photo without the column does not fit (and fits !=)."""
    place = f'$."{field}"'
    column = "json_extract(metadata, ?)"
    if operator == "~":
        return Filter(f"instr(lower({column}), lower(?)) > 0", (place, value))
    number = _number(value)
    if operator in ("=", "!="):
        sql = f"coalesce(CAST({column} AS TEXT) GLOB ?, 0)"
        values: Values = [place, value]
        if number is not None:
            sql, values = f"({sql} OR coalesce({column} = ?, 0))", [*values, place, number]
        return Filter(sql if operator == "=" else f"NOT {sql}", tuple(values))
    kind = "json_type(metadata, ?)"
    if number is not None:
        return Filter(f"{kind} IN ('integer', 'real') AND {column} {operator} ?", (place, place, number))
    return Filter(f"{kind} = 'text' AND {column} {operator} ?", (place, place, value))


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
