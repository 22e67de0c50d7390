"""Documents of captioned photos: a function of (seed, number), no photo twice, related ones with the nearest last."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.albums import Albums, AlbumStyle
from graftlm.data.ledger import Ledger
from graftlm.data.readers import read_all
from graftlm.data.related import Related, write_related
from graftlm.data.rows import CaptionStyle, PhotoRow
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Text, Video
from graftlm.errors import ConfigError, DataError
from graftlm.evaluate.prompts import END, STYLES, asked, few_shot, worked
from tests.data.readers import files


def rows(count: int = 12, equal: tuple[int, ...] = ()) -> list[PhotoRow]:
    """Photos with two captions each; those in `equal` have the same bytes."""
    pictures = [b"same" if number in equal else f"photo {number}".encode() for number in range(count)]
    return [PhotoRow(f"p{n}", picture, (f"{n} x", f"{n} y")) for n, picture in enumerate(pictures)]


def albums(photos: list[PhotoRow], related: Any = (), **style: Any) -> Albums:
    return Albums(photos, CaptionStyle(), AlbumStyle(**style), related)


def shown(sample: Sample) -> tuple[str, ...]:
    keys: tuple[str, ...] = sample.metadata["photos"]
    return keys


def test_a_document_is_photo_and_caption_in_turn_with_every_caption_a_target() -> None:
    sample = albums(rows(), least=4, most=4).sample(3)
    parts = sample.sentence.parts
    assert [type(part) for part in parts] == [Image, Text] * 4
    assert all(part.target == isinstance(part, Text) for part in parts)
    for key, image, text in zip(shown(sample), parts[::2], parts[1::2], strict=True):
        assert isinstance(image, Image)
        assert isinstance(text, Text)
        assert image.source == f"photo {key[1:]}".encode()
        assert text.content in (f"{key[1:]} x", f"{key[1:]} y")


def test_a_document_depends_on_seed_and_number_alone() -> None:
    found = albums(rows(), seed=1)
    one = [found.sample(number) for number in range(50)]
    again = [albums(rows(), seed=1).sample(number) for number in reversed(range(50))][::-1]
    assert one == again
    assert one != [albums(rows(), seed=2).sample(number) for number in range(50)]
    assert found.sample(24).sentence != found.sample(0).sentence  # the second time a caption closes another document


def test_each_caption_closes_one_document() -> None:
    found = albums(rows(), least=1, most=3)
    assert found.num_captions == 24
    last = [found.sample(number).sentence.parts[-1] for number in range(24)]
    assert [part.content for part in last if isinstance(part, Text)] == [f"{n} {c}" for n in range(12) for c in "xy"]


def test_the_number_of_photos_is_drawn_evenly_from_its_range() -> None:
    found = albums(rows(), least=2, most=5)
    counts = Counter(len(shown(found.sample(number))) for number in range(1000))
    assert set(counts) == {2, 3, 4, 5}
    assert min(counts.values()) > 200


def test_no_photo_and_no_equal_content_comes_twice() -> None:
    found = albums(rows(8, equal=(2, 5)), least=7, most=7)
    for number in range(100):
        keys = shown(found.sample(number))
        assert len(set(keys)) == len(keys) == 7
        assert not {"p2", "p5"} <= set(keys)


def test_fewer_different_photos_than_wanted_make_a_shorter_document() -> None:
    assert len(shown(albums(rows(3, equal=(0, 1)), least=3, most=3).sample(0))) == 2
    with pytest.raises(DataError, match="at least 4 photos with captions, found 3"):
        albums(rows(3), least=4, most=4)


NEAREST = [tuple(f"p{(number + step) % 12}" for step in (1, 2, 3, 4)) for number in range(12)]


def test_related_documents_hold_neighbours_with_the_nearest_last() -> None:
    found = albums(rows(), NEAREST, least=3, most=3, related_fraction=1.0, pool=3)
    seen = Counter()
    for number in range(200):
        sample = found.sample(number)
        *before, last = (int(key[1:]) for key in shown(sample))
        steps = [(place - last) % 12 for place in before]
        assert sample.metadata["related"] is True
        assert steps == sorted(steps, reverse=True)
        assert set(steps) <= {1, 2, 3}
        seen[tuple(steps)] += 1
    assert set(seen) == {(2, 1), (3, 1), (3, 2)}


def test_a_share_of_the_documents_is_related_and_the_rest_is_random() -> None:
    found = albums(rows(), NEAREST, least=3, most=3, related_fraction=0.25, pool=2)
    flags = [bool(found.sample(number).metadata["related"]) for number in range(800)]
    assert 0.2 < sum(flags) / 800 < 0.3
    random = [found.sample(number) for number in range(800) if not flags[number]]
    steps = Counter((int(shown(sample)[0][1:]) - int(shown(sample)[-1][1:])) % 12 for sample in random)
    assert set(steps) == set(range(1, 12))
    none = albums(rows(), least=3, most=3, related_fraction=1.0)
    assert not any(none.sample(number).metadata["related"] for number in range(50))


def test_where_neighbours_run_out_random_photos_come_first() -> None:
    sample = albums(rows(), [("p1",)] * 12, least=4, most=4, related_fraction=1.0).sample(0)
    assert shown(sample)[2:] == ("p1", "p0")
    assert len(set(shown(sample))) == 4


def test_photos_without_captions_are_left_out() -> None:
    photos = rows(4)
    photos[1] = PhotoRow("p1", b"none", ())
    found = albums(photos, [("p1", "p2")] * 4, least=3, most=3, related_fraction=1.0)
    assert found.num_captions == 6
    assert all("p1" not in shown(found.sample(number)) for number in range(50))


def captioned(folder: Path) -> dict[str, Any]:
    names = [f"{number}.jpg" for number in range(6)]
    files.photos(folder / "images", names)
    lines = [{"image": name, "split": "train", "captions": [f"{name} , one", f"{name} two"]} for name in names]
    return {"reader": "albums", "path": str(files.jsonl(folder / "captions.jsonl", lines)), "split": "train"}


def test_the_reader_takes_photos_from_another_one(tmp_path: Path) -> None:
    spec = captioned(tmp_path)
    found = read_all({**spec, "photos": [2, 2], "of": {"tidy": True, "prompt": "A photo: "}, "between": "\n"})
    assert len(found) == 12
    assert [type(part) for part in found[0].sentence] == [Image, Text, Text, Image, Text, Text]
    texts = [part for part in found[0].sentence if isinstance(part, Text)]
    assert [text.target for text in texts] == [False, True, False, True]
    assert texts[1].content.endswith("\n")
    assert texts[3].content == "0.jpg, one"
    assert found[0].metadata["split"] == "train"
    assert len({sample.key for sample in found}) == 12
    assert len(read_all({**spec, "documents": 30})) == 30
    assert len(read_all({**spec, "limit": 2})) == 4


def test_documents_can_be_in_the_words_of_a_few_shot_prompt(tmp_path: Path) -> None:
    files.photos(tmp_path / "images", ["0.jpg", "1.jpg"])
    lines = [{"image": name, "split": "train", "captions": [f"{name} ."]} for name in ("0.jpg", "1.jpg")]
    photos = {"path": str(files.jsonl(tmp_path / "captions.jsonl", lines)), "split": "train"}
    words = {"of": {"tidy": True, "prompt": "Output:"}, "between": END}
    document = read_all({**photos, "reader": "albums", "photos": [2, 2], **words})[0].sentence
    samples = {sample.sentence.media(): sample for sample in read_all({**photos, "reader": "jsonl"})}
    shown, last = (samples[(picture,)] for picture in document.media())
    prompt = few_shot("", [worked(shown, STYLES["paper"])], asked(last, STYLES["paper"]))
    assert document.text() == prompt.text() == f"Output: {shown.references[0][:5]}.\nOutput: {last.references[0][:5]}."


def test_the_reader_takes_neighbours_from_a_file(tmp_path: Path) -> None:
    spec = captioned(tmp_path)
    keys = [f"{number}.jpg" for number in range(6)]
    nearest = {key: (keys[(place + 1) % 6],) for place, key in enumerate(keys)}
    write_related(Related(nearest), tmp_path / "related.jsonl")
    spec |= {"related": str(tmp_path / "related.jsonl"), "related_fraction": 1.0, "photos": [2, 2]}
    assert all(nearest[shown(sample)[1]] == (shown(sample)[0],) for sample in read_all(spec))
    write_related(Related(dict.fromkeys(keys[:5], ())), tmp_path / "related.jsonl")
    with pytest.raises(DataError, match=r"expected the photo 5.jpg, found 5 others"):
        read_all(spec)


def test_a_bad_row_of_the_photos_is_written_down(tmp_path: Path) -> None:
    spec = captioned(tmp_path)
    (tmp_path / "images" / "3.jpg").unlink()
    ledger = Ledger()
    assert len(read_all(spec, ledger)) == 10
    assert ledger.reasons == {"missing-file": 1}


def test_a_photo_that_cannot_be_read_any_more_is_left_to_those_who_decode_it(tmp_path: Path) -> None:
    found = read_all({**captioned(tmp_path), "photos": [6, 6]})
    (tmp_path / "images" / "3.jpg").unlink()
    assert len(found[0].sentence.media()) == 6


def test_captioned_films_make_albums_too(tmp_path: Path) -> None:
    files.photos(tmp_path / "a", ["0.jpg"])
    files.photos(tmp_path / "b", ["0.jpg", "1.jpg"])
    lines = [{"video": name, "caption": name} for name in "ab"]
    path = files.jsonl(tmp_path / "films.jsonl", lines)
    found = read_all({"reader": "albums", "path": str(path), "photos": [2, 2]})
    assert [type(part) for part in found[0].sentence] == [Video, Text, Video, Text]


def test_what_cannot_make_albums_is_one_sentence(tmp_path: Path) -> None:
    spec = captioned(tmp_path)
    with pytest.raises(ConfigError, match=r"'photos'.*the smaller one first"):
        read_all({**spec, "photos": [3, 2]})
    with pytest.raises(ConfigError, match="unknown key 'tidyy'; did you mean 'tidy'"):
        read_all({**spec, "of": {"tidyy": True}})
    files.jsonl(tmp_path / "qa" / "qa.jsonl", [{"image": "../images/1.jpg", "question": "q", "answer": "a"}])
    with pytest.raises(ConfigError, match=r"expected captioned photos by number.*reader 'vqa'"):
        read_all({"reader": "albums", "path": str(tmp_path / "qa")})
