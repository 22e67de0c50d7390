"""VIST: inputs, gallery, skipped stories and hidden photos, against a loop over the official file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graftlm.data.media import content_hash
from graftlm.data.readers import read_all
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, MediaPart, Sentence, Text
from graftlm.errors import DataError, UsageError
from graftlm.evaluate.report import Report
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.lm.decode import Decoding
from tests.data.readers.files import vist

WIDTH = 16


def vector(name: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


class Bag:
    """A query is the sum of its parts, each mapped by its content alone; pictures weigh `sight`."""

    shared_dim = WIDTH

    def __init__(self, sight: float = 0.5) -> None:
        self.sight = sight
        self.asked: list[Sentence] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        raise AssertionError("nothing is to be written")

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        return torch.stack([vector(content_hash(part)) for part in media])

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        self.asked += sentences
        rows = []
        for sentence in sentences:
            total = torch.zeros(WIDTH)
            for part in sentence:
                total += vector(part.content) if isinstance(part, Text) else self.sight * vector(content_hash(part))
            rows.append(torch.nn.functional.normalize(total, dim=0))
        return torch.stack(rows)

    def retrieval_fingerprint(self) -> str:
        return "00"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return vist(tmp_path)


def run(folder: Path, finder: Any = None, compat: str = "none", controls: tuple[str, ...] = ()) -> Report:
    samples = read_all({"path": str(folder), "per": "media"})
    return evaluate(finder or Bag(), "vist", samples, Options(controls=controls, settings={"compat": compat}))


def by_hand(folder: Path, *, official: bool) -> dict[str, float]:
    """The protocol in loops over the raw file, one dot product at a time."""
    content = json.loads(next(folder.glob("*.json")).read_text("utf-8"))
    addressed = {row["id"] for row in content["images"] if "url_o" in row}
    stories: dict[str, list[dict[str, Any]]] = {}
    for (row,) in content["annotations"]:
        stories.setdefault(row["story_id"], []).append(row)
    stories = {key: rows for key, rows in stories.items() if len(rows) == 5}

    def there(photo: str) -> bool:
        return (folder / "images" / f"{photo}.jpg").exists() and (photo in addressed or not official)

    gallery = sorted({row["photo_flickr_id"] for rows in stories.values() for row in rows} - {"303"})
    gallery = [photo for photo in gallery if there(photo)]
    pictures = {photo: vector(content_hash(Image(folder / "images" / f"{photo}.jpg"))) for photo in gallery}
    ranks: dict[str, list[int]] = {}
    for rows in stories.values():
        if not all(there(row["photo_flickr_id"]) for row in rows):
            continue
        told = rows if official else sorted(rows, key=lambda row: int(row["worker_arranged_photo_order"]))
        photos = [row["photo_flickr_id"] for row in told]
        for name, count, shows in (("1 caption", 1, 0), ("5 captions", 5, 0), ("5 captions, 4 images", 5, 1)):
            total = torch.zeros(WIDTH)
            for place, row in enumerate(told[5 - count :]):
                words = row["text"] if official else row["text"].replace(" .", ".").replace(" ,", ",")
                total += vector(words if official or not place else f" {words}")
                if shows and place < 4:
                    total += 0.5 * pictures[photos[place]]
            for suffix in ("", ", without shown"):
                hidden = set(photos[:4]) - (set() if official else {photos[4]}) if suffix else set()
                own = float(total @ pictures[photos[4]]) if photos[4] not in hidden else -np.inf
                better = [p for p in gallery if p != photos[4]]
                values = [-np.inf if p in hidden else float(total @ pictures[p]) for p in better]
                ranks.setdefault(f"({name}{suffix})", []).append(1 + sum(value >= own for value in values))
    found = {f"MRR {name}": 100 * sum(1 / rank for rank in own) / len(own) for name, own in ranks.items()}
    for k in (1, 5, 10):
        found |= {f"R@{k} {name}": 100 * sum(rank <= k for rank in own) / len(own) for name, own in ranks.items()}
    return found


@pytest.mark.parametrize("compat", ["none", "official"])
def test_the_numbers_are_those_of_a_loop_over_the_file(folder: Path, compat: str) -> None:
    expected = by_hand(folder, official=compat == "official")
    report = run(folder, compat=compat)
    assert len(set(expected.values())) > 2
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    other = run(folder, Bag(sight=-2.0), compat=compat).metrics
    assert {name: other[name] for name in expected} != pytest.approx(expected, abs=1e-5)


def test_a_query_holds_the_last_captions_each_with_its_photo_behind_it(folder: Path) -> None:
    finder = Bag()
    run(folder, finder)
    images = [Image(str(folder / "images" / f"10{number}.jpg")) for number in range(1, 5)]
    words = ["our landmark tree was about to be cut.", " so we decided to take the kids there."]
    assert finder.asked[0] == Sentence.of("we said good bye to it.")
    assert finder.asked[4].parts[:2] == (Text(words[0]), Text(words[1]))
    assert finder.asked[8].parts[:4] == (Text(words[0]), images[0], Text(words[1]), images[1])
    assert len(finder.asked[8]) == 9


def test_official_keeps_the_order_and_the_words_of_the_file(folder: Path) -> None:
    finder = Bag()
    run(folder, finder, compat="official")
    lake = next(sentence for sentence in finder.asked if len(sentence) == 9 and "water" in sentence.text())
    assert lake.parts[0] == Text("the water was cold .")
    assert lake.parts[2] == Text("we went to the lake .")
    shown = [Path(str(part.source)).stem for part in lake if isinstance(part, Image)]
    assert shown == ["202", "201", "203", "205"]


def test_stories_without_a_photo_are_left_out_and_their_other_photos_stay(folder: Path) -> None:
    assert run(folder).notes == ("4 stories, 1 left out for a missing photo, 19 photos in the gallery",)
    official = run(folder, compat="official").notes
    assert official == ("3 stories, 2 left out for a missing photo, 18 photos in the gallery",)


def test_a_last_photo_that_was_shown_before_stays_findable_unless_official(folder: Path) -> None:
    name = "R@10 (5 captions, 4 images, without shown)"

    class Knowing(Bag):
        def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
            return torch.stack([vector(content_hash(Image(folder / "images" / "102.jpg")))] * len(sentences))

    ranks = {row.key: row.scores["rank"] for row in run(folder, Knowing()).rows}
    assert ranks["30375"] == 1
    here, there = (run(folder, Knowing(), compat=compat).metrics[name] for compat in ("none", "official"))
    assert here > there


def test_controls_change_what_a_query_shows_and_nothing_else(folder: Path) -> None:
    report = run(folder, Bag(sight=3.0), controls=("blind", "shuffled"))
    full = {name for name in report.metrics if "4 images" in name}
    assert set(report.controls["blind"]) == set(report.controls["shuffled"]) == full
    assert report.controls["blind"] != {name: report.metrics[name] for name in full}
    unseeing = run(folder, Bag(sight=0.0), controls=("blind",))
    assert unseeing.controls["blind"] == {name: unseeing.metrics[name] for name in full}


def test_other_data_other_systems_and_other_settings_are_refused(folder: Path) -> None:
    samples = [Sample(Sentence.of("a", Image("x.jpg")), "x")]
    with pytest.raises(DataError, match="expected a story of VIST, found 'x'"):
        evaluate(Bag(), "vist", samples)
    with pytest.raises(UsageError, match="setting 'compat': expected none or official, found 'paper'"):
        run(folder, compat="paper")
    for photo in (folder / "images").iterdir():
        if photo.stem[1:] == "03":
            photo.unlink()
    with pytest.raises(DataError, match="a story with all its photos, found none"):
        run(folder, compat="official")
