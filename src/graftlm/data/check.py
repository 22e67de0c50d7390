"""Looks a data set over before it is trained on: counts, lengths, bad rows, equal photos, and a contact sheet."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from heapq import heappush, heapreplace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from graftlm.data.contact_sheet import Tile, draw, thumbnail
from graftlm.data.ledger import BadRow, Ledger
from graftlm.data.media import content_hash, load_image
from graftlm.data.readers import parse, read
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Text
from graftlm.errors import BadSampleError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_THREADS = 4
_WAITING = 64
_SHOWN_ERRORS = 10
_SHOWN_DUPLICATES = 20


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median, mean and greatest of some numbers."""

    least: int
    median: float
    mean: float
    greatest: int

    @classmethod
    def of(cls, numbers: list[int]) -> Spread:
        """The spread of numbers; zeros where there are none."""
        if not numbers:
            return cls(0, 0.0, 0.0, 0)
        mean = round(statistics.fmean(numbers), 2)
        return cls(min(numbers), float(statistics.median(numbers)), mean, max(numbers))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        rows: rows of the file that were looked at, bad ones among them
        samples: sentences that the reader gives (one per caption, question or dialogue)
        photos: different photos among them that can be decoded
        unreadable: different photos that cannot
        per_photo: sentences for each photo
        words: of what is to be learnt
        splits: photos by split, where the rows name one
        equal: groups of photos with equal bytes, of which `duplicates` shows the first 20, each photo as "split/key"
        leaks: how many of these groups lie in more than one split
        reasons: bad rows by reason
        errors: the first bad rows, with file and row
        sheet: the contact sheet, or None where no photo could be decoded
    """

    path: str
    reader: str
    split: str | None
    rows: int
    samples: int
    photos: int
    unreadable: int
    without_target: int
    per_photo: Spread
    words: Spread
    splits: Mapping[str, int]
    equal: int
    duplicates: list[list[str]]
    leaks: int
    reasons: Mapping[str, int]
    errors: list[BadRow]
    sheet: str | None
    seconds: float

    @property
    def is_usable(self) -> bool:
        """Whether there is anything to train on or to answer."""
        return self.samples > 0 and (self.photos > 0 or not self.unreadable)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Tally:
    """Counts while the samples go by; `tiles` is a heap of the photos drawn for the sheet."""

    samples: int = 0
    without_target: int = 0
    words: list[int] = field(default_factory=list)
    per_photo: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    hashes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    tiles: list[tuple[float, str, Tile]] = field(default_factory=list)

    def hear(self, sample: Sample) -> bool:
        """Counts the words of a sample; tells whether its photo is a new one."""
        self.samples += 1
        targets = [part.content for part in sample.sentence if isinstance(part, Text) and part.target]
        self.without_target += not any(part.target for part in sample.sentence)
        self.words += [len(words.split()) for words in targets]
        name = photo_name(sample)
        if name is None:
            return False
        self.per_photo[name] += 1
        return self.per_photo[name] == 1


@dataclass(frozen=True, slots=True)
class _Look:
    """One photo, decoded: its hash, or what is wrong; a small picture where it may go onto the sheet."""

    sample: Sample
    hash: str = ""
    small: PILImage | None = None
    error: BadSampleError | None = None


def check(
    spec: Mapping[str, Any],
    *,
    limit: int | None = None,
    pictures: int = 48,
    sheet: str | Path | None = None,
    ledger: Ledger | None = None,
) -> CheckReport:
    """Reads everything a spec names, decodes every photo, and draws some of them.

    Args:
        spec: as `readers.read` takes it
        limit: at most this many rows
        pictures: how many photos go onto the contact sheet; the same ones each time
        sheet: its path; by default `<name>_contact_sheet.png` in the current folder
        ledger: where bad rows go

    Raises: ConfigError, DataError as `readers.read`.
    """
    start = time.monotonic()
    ledger = Ledger() if ledger is None else ledger
    whole = {**spec, "per": "caption", **({} if limit is None else {"limit": limit})}
    parsed, _ = parse(whole)
    dataset = read({**whole, "reader": parsed.reader}, ledger)
    total = len(dataset) if hasattr(dataset, "__len__") else None
    tally = _Tally()
    for look in _looks(iter(dataset), tally, pictures, total):
        _note(look, tally, pictures, ledger, parsed.path)
    tiles = [tile for _, _, tile in sorted(tally.tiles, key=lambda entry: entry[1])]
    target = Path(sheet) if sheet is not None else Path(f"{Path(parsed.path).resolve().stem}_contact_sheet.png")
    photos = len(tally.per_photo) - len(tally.bad)
    title = f"{Path(parsed.path).name}: {photos:,} photos, {tally.samples:,} samples, {len(ledger.entries):,} bad rows"
    groups = [group for group in tally.hashes.values() if len(group) > 1]
    return CheckReport(
        path=parsed.path,
        reader=parsed.reader,
        split=parsed.split,
        rows=ledger.rows,
        samples=tally.samples,
        photos=photos,
        unreadable=len(tally.bad),
        without_target=tally.without_target,
        per_photo=Spread.of(list(tally.per_photo.values())),
        words=Spread.of(tally.words),
        splits=dict(tally.splits),
        equal=len(groups),
        duplicates=[["/".join(filter(None, name)) for name in group] for group in groups[:_SHOWN_DUPLICATES]],
        leaks=sum(len({split for split, _ in group}) > 1 for group in groups),
        reasons=ledger.reasons,
        errors=ledger.entries[:_SHOWN_ERRORS],
        sheet=str(draw(tiles, title, target)) if tiles else None,
        seconds=round(time.monotonic() - start, 1),
    )


def photo_name(sample: Sample) -> str | None:
    """What tells photos apart: the path where there is one, else the stem of the key; None without a photo."""
    picture = _picture(sample)
    if picture is None:
        return None
    return str(picture) if isinstance(picture, str | Path) else sample.stem


def _picture(sample: Sample) -> Media | None:
    return next((part.source for part in sample.sentence if isinstance(part, Image)), None)


def _looks(samples: Iterator[Sample], tally: _Tally, pictures: int, total: int | None) -> Iterator[_Look]:
    """Decodes new photos in threads, a bounded number ahead, with a bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    waiting: deque[Future[_Look]] = deque()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(_THREADS) as pool:
        bar = progress.add_task("checking samples", total=total)
        for sample in samples:
            progress.advance(bar)
            if tally.hear(sample):
                is_drawn = len(tally.tiles) < pictures or _draw_of(sample) > tally.tiles[0][0]
                waiting.append(pool.submit(_look, sample, is_drawn and pictures > 0))
            if len(waiting) > _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _look(sample: Sample, is_drawn: bool) -> _Look:
    source = _picture(sample)
    assert source is not None
    try:
        picture = load_image(source)
        return _Look(sample, content_hash(source), thumbnail(picture) if is_drawn else None)
    except BadSampleError as error:
        return _Look(sample, error=error)


def _note(look: _Look, tally: _Tally, pictures: int, ledger: Ledger, path: str) -> None:
    name = photo_name(look.sample)
    split = look.sample.metadata.get("split")
    split = split if isinstance(split, str) else ""
    if look.error is not None or name is None:
        tally.bad.add(str(name))
        ledger.add(
            look.error.reason if look.error else "missing-file", str(look.error), file=path, row=look.sample.stem
        )
        return
    tally.splits[split] += bool(split)
    tally.hashes.setdefault(look.hash, []).append((split, look.sample.stem))
    if look.small is not None:
        entry = (_draw_of(look.sample), look.sample.key, _tile(look.sample, look.small))
        if len(tally.tiles) < pictures:
            heappush(tally.tiles, entry)
        elif entry[0] > tally.tiles[0][0]:
            heapreplace(tally.tiles, entry)


def _draw_of(sample: Sample) -> float:
    """A number drawn from the key: the greatest ones are shown, whatever the order of the rows."""
    return random.Random(sample.key).random()


def _tile(sample: Sample, small: PILImage) -> Tile:
    words = [part for part in sample.sentence if isinstance(part, Text)]
    given = "".join(part.content for part in words if not part.target)
    wanted = " ".join(part.content.strip() for part in words if part.target)
    return Tile(small, given.strip(), wanted)
