"""Documents built from captioned photos: photo, caption, photo, caption and so on, each caption a target.

They teach what few-shot prompts ask for (Flamingo, arXiv:2204.14198): in a share of them the photos before the last one
are related to it and the nearest comes last, as RICES orders a prompt; in the others they are drawn at random. Document
`number` is a function of (seed, number) alone.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from graftlm.data.rows import CaptionStyle, PhotoRow, media
from graftlm.data.sample import Sample
from graftlm.data.sentence import Part, Sentence, Text
from graftlm.errors import BadSampleError, DataError


@dataclass(frozen=True, slots=True)
class AlbumStyle:
    """How photos become a document.

    Attributes:
        least, most: photos in a document; how many is drawn evenly
        related_fraction: share of documents whose photos are related to the last one
        pool: how many of the nearest photos these are drawn from
        between: words after each caption but the last; with none, a system marks the end itself
        seed: another seed draws other documents
    """

    least: int = 1
    most: int = 5
    related_fraction: float = 0.5
    pool: int = 16
    between: str = ""
    seed: int = 0


class Albums:
    """Documents by number; caption `number` of all captions, in turn, closes document `number`.

    Args:
        photos: rows with captions; others are left out
        captions: how a photo and one of its captions are written
        style: how many photos, and which
        related: for each of `photos` the keys of its neighbours, nearest first; none where nothing is related

    Raises: DataError when there are fewer photos than a document needs.
    """

    def __init__(
        self,
        photos: Sequence[PhotoRow],
        captions: CaptionStyle,
        style: AlbumStyle,
        related: Sequence[Sequence[str]] = (),
    ) -> None:
        with_captions = [place for place, photo in enumerate(photos) if photo.captions]
        self._photos = [photos[place] for place in with_captions]
        places = {photo.key: place for place, photo in enumerate(self._photos)}
        nearest = [related[place] for place in with_captions] if related else [()] * len(self._photos)
        self._nearest = [[places[key] for key in keys if key in places][: style.pool] for keys in nearest]
        self._ends = list(accumulate(len(photo.captions) for photo in self._photos))
        self._captions = captions
        self._style = style
        self._contents: dict[int, str] = {}
        if len(self._photos) < max(1, style.least):
            raise DataError(
                f"documents of photos: expected at least {max(1, style.least)} photos with captions, found "
                f"{len(self._photos)}; use more data or fewer 'photos' in a document"
            )

    @property
    def num_captions(self) -> int:
        """How many documents there are until each caption has closed one."""
        return self._ends[-1]

    def sample(self, number: int) -> Sample:
        """Document `number`, from 0 on. Raises: BadSampleError when a photo can no longer be fetched."""
        style = self._style
        dice = random.Random(f"{style.seed}:{number}")
        caption = number % self.num_captions
        last = bisect_right(self._ends, caption)
        wanted = dice.randint(style.least, style.most) - 1
        is_related = dice.random() < style.related_fraction and bool(self._nearest[last])
        near = self._different(dice.sample(self._nearest[last], len(self._nearest[last])), [last], wanted * is_related)
        far = self._different(self._shuffled(dice), [last, *near], wanted - len(near))
        near.sort(key=self._nearest[last].index, reverse=True)
        shown = [(place, dice.randrange(len(self._photos[place].captions))) for place in (*far, *near)]
        shown.append((last, caption - self._ends[last] + len(self._photos[last].captions)))
        metadata = {"photos": tuple(self._photos[place].key for place, _ in shown), "related": is_related}
        split = self._photos[last].metadata.get("split")
        return Sample(
            Sentence(tuple(self._parts(shown))),
            f"album:{number}",
            metadata=metadata if split is None else {**metadata, "split": split},
        )

    def _parts(self, shown: Sequence[tuple[int, int]]) -> Iterator[Part]:
        for number, (place, caption) in enumerate(shown, start=1):
            *before, written = self._captions.sample(self._photos[place], caption).sentence
            yield from before
            assert isinstance(written, Text)
            closes = number == len(shown)
            yield written if closes else replace(written, content=written.content + self._style.between)

    def _shuffled(self, dice: random.Random) -> Iterator[int]:
        """All photos in a random order, drawn one by one."""
        drawn: set[int] = set()
        while len(drawn) < len(self._photos):
            place = dice.randrange(len(self._photos))
            if place not in drawn:
                drawn.add(place)
                yield place

    def _different(self, candidates: Iterator[int] | Sequence[int], taken: Sequence[int], count: int) -> list[int]:
        """The first `count` photos whose content is none of those taken, nor twice among them."""
        found: list[int] = []
        contents: set[str] = set()
        for place in candidates if count > 0 else ():
            if not contents:
                contents = {self._content(one) for one in taken}
            if self._content(place) not in contents:
                contents.add(self._content(place))
                found.append(place)
            if len(found) == count:
                break
        return found

    def _content(self, place: int) -> str:
        """What tells photos apart: their content, or the key of one that cannot be read, which is told elsewhere."""
        if place not in self._contents:
            from graftlm.data.media import content_hash

            try:
                self._contents[place] = content_hash(media(self._photos[place].image))
            except BadSampleError:
                self._contents[place] = self._photos[place].key
        return self._contents[place]
