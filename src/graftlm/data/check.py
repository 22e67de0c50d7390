"""Looks a data set over before it is trained on: counts, lengths, bad rows, equal photos, and a contact sheet.

A sentence may show any number of pictures and films; a film counts as one photo and is shown by four of its frames.
"""

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

from graftlm.data.contact_sheet import Tile, draw, mosaic, thumbnail
from graftlm.data.ledger import BadRow, Ledger
from graftlm.data.media import content_hash, load_image
from graftlm.data.readers import parse, read
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Text, Video
from graftlm.data.video import Sampling, load_frames
from graftlm.errors import BadSampleError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_THREADS = 4
_WAITING = 64
_SHOWN_ERRORS = 10
_SHOWN_DUPLICATES = 20
_STILLS = 4


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
        per_sample: pictures in each sentence; more than one in documents
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
    per_sample: Spread
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


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture or a film of a sample.

    Attributes:
        name: tells it apart from others: the path where there is one, else the label
        label: what reports call it: the key that an album keeps of its photos, the key of a sample without the number
            of its caption, or key and place in a document
        words: the given and the wanted ones, from it to the next picture
    """

    name: str
    label: str
    part: Image | Video
    words: tuple[str, str]


@dataclass(slots=True)
class _Tally:
    """Counts while the samples go by; `groups` is a heap of the samples drawn for the sheet."""

    samples: int = 0
    without_target: int = 0
    words: list[int] = field(default_factory=list)
    per_sample: list[int] = field(default_factory=list)
    per_photo: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    hashes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    groups: list[tuple[float, str, list[Tile]]] = field(default_factory=list)

    def hear(self, sample: Sample, photos: list[Photo]) -> list[bool]:
        """Counts the words of a sample; tells which of its photos are new."""
        self.samples += 1
        targets = [part.content for part in sample.sentence if isinstance(part, Text) and part.target]
        self.without_target += not any(part.target for part in sample.sentence)
        self.words += [len(words.split()) for words in targets]
        self.per_sample.append(len(photos))
        new = []
        for photo in photos:
            self.per_photo[photo.name] += 1
            new.append(self.per_photo[photo.name] == 1)
        return new

    def draw(self, sample: Sample, most: int) -> bool:
        """Whether a sample is among those to be shown, as far as one can tell by now."""
        return most > 0 and (len(self.groups) < most or _draw_of(sample) > self.groups[0][0])

    def show(self, sample: Sample, tiles: list[Tile], most: int) -> None:
        """Keeps the tiles of a sample while it is among those to be shown."""
        entry = (_draw_of(sample), sample.key, tiles)
        if tiles and len(self.groups) < most:
            heappush(self.groups, entry)
        elif tiles and entry[0] > self.groups[0][0]:
            heapreplace(self.groups, entry)

    def sheet(self, most: int) -> list[list[Tile]]:
        """The samples to show, in the order of their keys: as many as have `most` photos, or the first of them."""
        shown: list[tuple[str, list[Tile]]] = []
        for _, key, tiles in sorted(self.groups, key=lambda entry: entry[:2], reverse=True):
            if shown and sum(len(group) for _, group in shown) + len(tiles) > most:
                break
            shown.append((key, tiles))
        return [tiles for _, tiles in sorted(shown, key=lambda entry: entry[0])]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One photo, decoded: its hash, or what is wrong; a small picture where it may go onto the sheet."""

    photo: Photo
    is_new: bool
    hash: str = ""
    small: PILImage | None = None
    error: BadSampleError | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """Photos of one sample: all of a sample that may go onto the sheet, of others those that are new."""

    sample: Sample
    seen: list[_Seen]


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
        for seen in look.seen:
            _note(look.sample, seen, tally, ledger, parsed.path)
        tally.show(look.sample, [_tile(seen) for seen in look.seen if seen.small is not None], pictures)
    groups_shown = tally.sheet(pictures)
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
        per_sample=Spread.of(tally.per_sample),
        words=Spread.of(tally.words),
        splits=dict(tally.splits),
        equal=len(groups),
        duplicates=[["/".join(filter(None, name)) for name in group] for group in groups[:_SHOWN_DUPLICATES]],
        leaks=sum(len({split for split, _ in group}) > 1 for group in groups),
        reasons=ledger.reasons,
        errors=ledger.entries[:_SHOWN_ERRORS],
        sheet=str(draw(groups_shown, title, target)) if groups_shown else None,
        seconds=round(time.monotonic() - start, 1),
    )


def photos_of(sample: Sample) -> list[Photo]:
    """Pictures and films of a sample in order; words before the first one go with it."""
    parts = [part for part in sample.sentence if not (isinstance(part, Image) and part.is_sought)]
    places = [place for place, part in enumerate(parts) if isinstance(part, Image | Video)]
    keys = sample.metadata.get("photos", ())
    photos = []
    for number, place in enumerate(places):
        part = parts[place]
        assert isinstance(part, Image | Video)
        first = 0 if number == 0 else place
        words = [one for one in parts[first : [*places, len(parts)][number + 1]] if isinstance(one, Text)]
        given = "".join(one.content for one in words if not one.target)
        wanted = " ".join(one.content.strip() for one in words if one.target)
        own = sample.stem if len(places) == 1 else f"{sample.key}[{number}]"
        label = str(keys[number]) if len(keys) == len(places) else own
        name = str(part.source) if isinstance(part.source, str | Path) else label
        photos.append(Photo(name, label, part, (given.strip(), wanted)))
    return photos


def _looks(samples: Iterator[Sample], tally: _Tally, pictures: int, total: int | None) -> Iterator[_Look]:
    """Decodes new photos in threads, a bounded number ahead, with a bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    waiting: deque[Future[_Look]] = deque()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(_THREADS) as pool:
        bar = progress.add_task("checking samples", total=total)
        for sample in samples:
            progress.advance(bar)
            photos = photos_of(sample)
            new = tally.hear(sample, photos)
            is_drawn = tally.draw(sample, pictures) and (any(new) or len(photos) > 1)
            asked = [(photo, own) for photo, own in zip(photos, new, strict=True) if own or is_drawn]
            if asked:
                waiting.append(pool.submit(_look, sample, asked, is_drawn))
            if len(waiting) > _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _look(sample: Sample, photos: list[tuple[Photo, bool]], is_drawn: bool) -> _Look:
    return _Look(sample, [_see(photo, is_new, is_drawn) for photo, is_new in photos])


def _see(photo: Photo, is_new: bool, is_drawn: bool) -> _Seen:
    try:
        picture = load_image(photo.part.source) if isinstance(photo.part, Image) else _still(photo.part)
        digest = content_hash(photo.part) if is_new else ""
        return _Seen(photo, is_new, digest, thumbnail(picture) if is_drawn else None)
    except BadSampleError as error:
        return _Seen(photo, is_new, error=error)


def _still(film: Video) -> PILImage:
    """Four frames of a film on one picture, in reading order."""
    return mosaic(load_frames(film.source, Sampling(_STILLS)))


def _note(sample: Sample, seen: _Seen, tally: _Tally, ledger: Ledger, path: str) -> None:
    """Writes a photo down when it is seen first."""
    if not seen.is_new:
        return
    split = sample.metadata.get("split")
    split = split if isinstance(split, str) else ""
    if seen.error is not None:
        tally.bad.add(seen.photo.name)
        ledger.add(seen.error.reason, str(seen.error), file=path, row=seen.photo.label)
        return
    tally.splits[split] += bool(split)
    tally.hashes.setdefault(seen.hash, []).append((split, seen.photo.label))


def _draw_of(sample: Sample) -> float:
    """A number drawn from the key: the greatest ones are shown, whatever the order of the rows."""
    return random.Random(sample.key).random()


def _tile(seen: _Seen) -> Tile:
    assert seen.small is not None
    return Tile(seen.small, *seen.photo.words)
