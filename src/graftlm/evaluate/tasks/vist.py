"""VIST: the last photo of a story is found by what was told and shown before it (FROMAGe §4.1, arXiv:2301.13823)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from graftlm.data.rows import tidied
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import DataError
from graftlm.evaluate.metrics.bootstrap import Interval
from graftlm.evaluate.metrics.ranking import Ranks, Scores, ranks_of
from graftlm.evaluate.retrieval import (
    DEPTHS,
    SHOWN,
    as_retriever,
    counter,
    embed_pictures,
    embed_queries,
    first,
    intervals,
    summary,
)
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.systems.base import Responder

INPUTS = {"1 caption": (1, False), "5 captions": (5, False), "5 captions, 4 images": (5, True)}
"""What a query holds: how many captions, the last ones, and whether the photos before the last are shown."""

FULL = "5 captions, 4 images"
WITHOUT = ", without shown"
Places: TypeAlias = npt.NDArray[np.int64]


class Vist(Task):
    """Recall of the last photo among all photos of the stories, by three inputs; ties count against.

    "without shown": the photos of the story's first four sentences cannot be found. A story that lacks a photo is left
    out, its other photos stay in the gallery. The controls change the photos that a query shows, not the gallery, and
    so have only the rows of queries that show some.

    With ``compat=official``, as FROMAGe's script: sentences in the order of the file, not as their author arranged
    them; words as in the file and without spaces between captions; photos without an original address do not exist;
    and without shown, a last photo that was shown before cannot be found either.
    """

    name: ClassVar[str] = "vist"
    headline: ClassVar[str] = f"MRR ({FULL})"
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled")
    settings: ClassVar[dict[str, tuple[str, ...]]] = {"compat": ("none", "official")}

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that finds no pictures; DataError when no story has all its photos."""
        retriever = as_retriever(responder, self.name)
        official = self.chosen(options.settings, "compat") == "official"
        photos = _gallery(samples, official)
        number = {photo: place for place, photo in enumerate(photos)}
        stories = [story for sample in samples if (story := _Story.of(sample, official, number)) is not None]
        if not stories:
            raise DataError("vist: expected a story with all its photos, found none; check the folder of the photos")
        inputs = {name: kind for name, kind in INPUTS.items() if kind[1] or not any(story.changed for story in stories)}
        moved = counter(progress, len(photos) + len(inputs) * len(stories))
        gallery = embed_pictures(retriever, [Image(path) for path in photos.values()], moved)
        metrics: dict[str, float] = {}
        ends: dict[str, Interval] = {}
        rows: tuple[Row, ...] = ()
        for name, (captions, shows) in inputs.items():
            queries = embed_queries(retriever, [story.query(captions, shows, official) for story in stories], moved)
            scores = queries.scores(slice(0, len(queries)), gallery)  # (Q, N)
            for suffix in ("", WITHOUT):
                if suffix:
                    _hide_shown(scores, stories, official)
                found, shown = _find(scores, stories)
                metrics |= summary(found, "", f" ({name}{suffix})")
                every = np.arange(len(stories))
                ends |= intervals(
                    found, every, "", f" ({name}{suffix})", seed=options.seed, resamples=options.resamples
                )
                rows = _rows(stories, found, shown, list(photos)) if name == FULL and not suffix else rows
        return Outcome(rows, metrics, ends, _notes(samples, stories, photos))


class _Story:
    """A story with all its photos: words, shown photos as the control left them, places in the gallery."""

    def __init__(self, sample: Sample, scenes: Sequence[Any], number: dict[str, int]) -> None:
        pictures = dict(zip(_arranged(sample), _pictures(sample), strict=True))
        shown = [pictures[scene] for scene in scenes[:-1]]
        self.sample = sample
        self.words = [scene.text for scene in scenes]
        self.shown = [Image(part.source) for part in shown]
        self.places = [number[scene.photo] for scene in scenes]
        self.changed = any(part.source != scene.path for part, scene in zip(shown, scenes[:-1], strict=True))

    @classmethod
    def of(cls, sample: Sample, official: bool, number: dict[str, int]) -> _Story | None:
        """The story of a sample; None where a photo is not in the gallery."""
        scenes = _scenes(sample) if official else _arranged(sample)
        return cls(sample, scenes, number) if all(scene.photo in number for scene in scenes) else None

    def query(self, captions: int, shows: bool, official: bool) -> Sentence:
        """The last captions, each followed by its photo where photos are shown."""
        parts: list[Part] = []
        for place, words in enumerate(self.words[-captions:]):
            parts.append(Text(words if official else f"{' ' if place else ''}{tidied(words)}"))
            if shows and place < len(self.shown):
                parts.append(self.shown[place])
        return Sentence(tuple(parts))


def _scenes(sample: Sample) -> tuple[Any, ...]:
    scenes = sample.metadata.get("scenes")
    if not isinstance(scenes, tuple):
        raise DataError(f"vist: expected a story of VIST, found '{sample.key}', which is none; read a SIS json file")
    return scenes


def _arranged(sample: Sample) -> tuple[Any, ...]:
    """The scenes as their author arranged them, which is the order of the sentence."""
    return tuple(sorted(_scenes(sample), key=lambda scene: scene.order))


def _pictures(sample: Sample) -> list[Image]:
    return [part for part in sample.sentence if isinstance(part, Image)]


def _gallery(samples: Sequence[Sample], official: bool) -> dict[str, str]:
    """Every photo of the stories that is there, once, by its id."""
    scenes = [scene for sample in samples for scene in _scenes(sample)]
    return {scene.photo: scene.path for scene in scenes if scene.path and (scene.has_address or not official)}


def _hide_shown(scores: Scores, stories: Sequence[_Story], official: bool) -> None:
    """Takes the photos of the first sentences out of what can be found, in place."""
    for row, story in enumerate(stories):
        hidden = [place for place in story.places[:-1] if official or place != story.places[-1]]
        scores[row, hidden] = -np.inf


def _find(scores: Scores, stories: Sequence[_Story]) -> tuple[Ranks, Places]:
    """Rank of every story's last photo, and the places of the first photos found."""
    return ranks_of(scores, np.array([story.places[-1] for story in stories])), first(scores, SHOWN)


def _rows(stories: Sequence[_Story], ranked: Ranks, shown: Places, photos: Sequence[str]) -> tuple[Row, ...]:
    rows = []
    for story, rank, places in zip(stories, ranked, shown, strict=True):
        found = [photos[place] for place in places]
        scores = {**{f"R@{k} ({FULL})": 100.0 * (rank <= k) for k in DEPTHS}, "rank": float(rank)}
        scores[f"MRR ({FULL})"] = 100 / float(rank)
        right = (photos[story.places[-1]],)
        rows.append(Row(story.sample.key, found[0], right, scores, " ".join(story.words)))
    return tuple(rows)


def _notes(samples: Sequence[Sample], stories: Sequence[_Story], photos: dict[str, str]) -> tuple[str, ...]:
    left = len(samples) - len(stories)
    return (f"{len(stories)} stories, {left} left out for a missing photo, {len(photos)} photos in the gallery",)
