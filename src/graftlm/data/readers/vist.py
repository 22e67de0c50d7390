"""VIST's stories in sequence: ``images`` and ``annotations`` of five sentences with a photo each.

Huang et al., "Visual Storytelling", arXiv:1604.03968. A sentence is its words and then its photo, for all five; the
last photo is the target. Photos lie as ``<photo_flickr_id>.jpg`` (or .png, .gif) beside the file, in ``images`` or in
``images/val``. Stories that lack a photo are read for evaluation alone (``per: media``): their photos belong to the
gallery, and nothing is asked of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import BadSampleError

LENGTH = 5
_WANTED = "a json file of VIST stories in sequence ('images' and 'annotations' with 'story_id')"
_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg")


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not one of the usual places")
    text: Literal["text", "original_text"] = Field(
        "text", description="text: tokenised, in lower case, names replaced; original_text: as it was written"
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """One sentence of a story and its photo; `path` is None where there is no such file."""

    text: str
    photo: str
    path: str | None
    order: int
    has_address: bool


@dataclass(frozen=True, slots=True)
class StoryRow:
    """One story in the order of the file."""

    key: str
    scenes: tuple[Scene, ...]

    @property
    def is_whole(self) -> bool:
        """Whether all its photos are there."""
        return all(scene.path is not None for scene in self.scenes)

    def sample(self) -> Sample:
        """Words and photos in the order in which they were told; the last photo is sought."""
        scenes = sorted(self.scenes, key=lambda scene: scene.order)
        parts: list[Part] = []
        for number, scene in enumerate(scenes):
            parts.append(Text(f" {scene.text}" if number else scene.text))
            if scene.path is not None:
                parts.append(Image(scene.path, target=self.is_whole and number == len(scenes) - 1))
        return Sample(Sentence(tuple(parts)), self.key, (scenes[-1].photo,), {"scenes": self.scenes})


def claims(path: str) -> bool:
    """Whether there is a file of stories."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[StoryRow]:
    """The stories in the order of the file. Raises: DataError when the file is none or no story can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    images, annotations = base.tables(base.load_json(file), ("images", "annotations"), file)
    addressed = {str(image.get("id")) for image in images if isinstance(image, dict) and image.get("url_o")}
    split = spec.split or "val"
    folder = base.picture_folder(
        spec.images, [*base.photo_places(file, [split]), file.parent.parent / "images" / split]
    )
    stories: dict[str, list[Scene]] = {}
    for number, record in enumerate(annotations):
        with ledger.row(file, f"annotations[{number}]"):
            story, scene = _scene(record, spec.text, folder, addressed)
            stories.setdefault(story, []).append(scene)
    rows = [row for row in (_row(key, scenes, file, ledger) for key, scenes in stories.items()) if row is not None]
    kept = [row for row in rows if row.is_whole or spec.per == "media"]
    kept = list(base.usable(kept, spec, ledger, file))
    return Samples(kept, lambda row, _: row.sample(), [1] * len(kept))


def _row(key: str, scenes: list[Scene], file: Path, ledger: Ledger) -> StoryRow | None:
    if len(scenes) == LENGTH:
        return StoryRow(key, tuple(scenes))
    message = f"expected {LENGTH} sentences in story {key}, found {len(scenes)}"
    ledger.add("short-story", message, file=file, row=key)
    return None


def _scene(record: Any, field: str, folder: MediaFolder, addressed: set[str]) -> tuple[str, Scene]:
    """The story's id and one of its scenes. Raises: BadSampleError when the row is none."""
    rows = record if isinstance(record, list) else [record]
    if len(rows) != 1:
        raise BadSampleError("wrong-type", f"expected one sentence in a row, found {shown(record)}")
    row: Mapping[str, Any] = base.checked(rows[0])
    story, photo = base.cell(row, ("story_id",), "story"), str(base.cell(row, ("photo_flickr_id",), "photo"))
    text, order = base.cell(row, (field,), "sentence"), base.cell(row, ("worker_arranged_photo_order",), "order")
    if not isinstance(text, str) or not isinstance(order, int):
        raise BadSampleError("wrong-type", f"expected words and a whole number as order, found {shown([text, order])}")
    return str(story), Scene(text.strip(), photo, _path(photo, folder), order, photo in addressed)


def _path(photo: str, folder: MediaFolder) -> str | None:
    for suffix in _SUFFIXES:
        try:
            return folder.find(photo + suffix)
        except BadSampleError:
            continue
    return None


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".json",), ("", "annotations", "sis")) if _is_vist(file)]


def _is_vist(file: Path) -> bool:
    text = base.ends(file)
    return '"photo_flickr_id"' in text or "story-in-sequence" in file.name
