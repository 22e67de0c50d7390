"""Each format is read into the samples that its rows say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.media import load_image
from graftlm.data.readers import read, read_all
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text
from tests.data.readers import files


def samples(spec: Mapping[str, Any]) -> list[Sample]:
    """All samples of a spec, with no bad row among them."""
    ledger = Ledger()
    found = list(read_all(spec, ledger))
    assert ledger.entries == []
    return found


def said(found: Sequence[Sample]) -> list[str]:
    return [sample.sentence.targets().text() for sample in found]


def shows(sample: Sample, path: Path) -> bool:
    """Whether the sample's one picture has the pixels of the file."""
    (part,) = (part for part in sample.sentence.media() if isinstance(part, Image))
    return load_image(part.source).tobytes() == load_image(path).tobytes()


def test_a_captioned_jsonl_gives_one_sample_per_caption(tmp_path: Path) -> None:
    folder = files.captioned(tmp_path)
    found = samples({"path": str(folder), "split": "train"})
    assert said(found) == ["a dog .", "the dog runs .", "a cat ."]
    assert [sample.key for sample in found] == ["a.jpg#0", "a.jpg#1", "b.jpg#0"]
    assert [sample.stem for sample in found] == ["a.jpg", "a.jpg", "b.jpg"]
    assert found[1].references == ("a dog .", "the dog runs .")
    assert found[0].metadata == {"split": "train"}
    assert shows(found[2], folder / "images" / "b.jpg")


def test_for_evaluation_each_photo_is_one_sample_with_all_references(tmp_path: Path) -> None:
    found = samples({"path": str(files.captioned(tmp_path)), "per": "media"})
    assert [sample.key for sample in found] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert found[0].references == ("a dog .", "the dog runs .")
    assert found[0].sentence.prompt().parts == (found[0].sentence.parts[0],)


def test_tidy_captions_are_learnt_and_raw_ones_stay_references(tmp_path: Path) -> None:
    (found,) = samples({"path": str(files.captioned(tmp_path)), "split": "test", "tidy": True, "prompt": "A photo of "})
    assert [part.content for part in found.sentence if isinstance(part, Text)] == ["A photo of ", "a fish, swimming."]
    assert found.references == ("a fish , swimming .",)


def test_limit_counts_photos_and_samples_are_a_sequence(tmp_path: Path) -> None:
    found = read_all({"path": str(files.captioned(tmp_path)), "limit": 2})
    assert len(found) == 3
    assert found[-1] == found[2]
    assert [sample.key for sample in found[1:]] == ["a.jpg#1", "b.jpg#0"]
    with pytest.raises(IndexError):
        found[3]


def test_captions_of_one_photo_on_several_lines_are_joined(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg", "b.jpg"])
    rows = [{"image": "a.jpg", "text": "one"}, {"image": "b.jpg", "text": "two"}, {"image": "a.jpg", "text": "three"}]
    path = files.jsonl(tmp_path / "pairs.jsonl", rows)
    assert said(samples({"path": str(path)})) == ["one", "three", "two"]
    assert [sample.references for sample in samples({"path": str(path), "per": "media"})] == [
        ("one", "three"),
        ("two",),
    ]


def test_a_json_list_of_captioned_rows_is_read_as_jsonl_is(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.jpg", "caption": "one"}]))
    assert said(samples({"path": str(tmp_path / "rows.json")})) == ["one"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_an_imagefolder_is_read_by_its_metadata(tmp_path: Path, name: str) -> None:
    files.photos(tmp_path / "train", ["a.png", "deep/b.png"])
    if name.endswith("csv"):
        (tmp_path / "train" / name).write_text('file_name,text\na.png,"one, two"\ndeep/b.png,three\n')
    else:
        files.jsonl(
            tmp_path / "train" / name,
            [{"file_name": "a.png", "text": "one, two"}, {"file_name": "deep/b.png", "text": "three"}],
        )
    found = samples({"path": str(tmp_path), "split": "train"})
    assert said(found) == ["one, two", "three"]
    assert shows(found[1], tmp_path / "train" / "deep" / "b.png")


def test_a_folder_of_photos_alone_gives_prompts_without_targets(tmp_path: Path) -> None:
    files.photos(tmp_path, ["b.jpg", "a.jpg", "inner/c.jpg"])
    found = samples({"path": str(tmp_path)})
    assert [sample.key.partition("#")[0] for sample in found] == ["a.jpg", "b.jpg", "inner/c.jpg"]
    assert all(len(sample.sentence) == 1 and not sample.references for sample in found)


def test_coco_captions_join_images_and_annotations(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "1.jpg"}, {"id": 9, "file_name": "2.jpg"}]
    annotations = [
        {"id": 1, "image_id": 9, "caption": "nine"},
        {"id": 2, "image_id": 7, "caption": "seven"},
        {"id": 3, "image_id": 9, "caption": "nine again"},
    ]
    files.coco(tmp_path, images, annotations)
    found = samples({"path": str(tmp_path), "split": "val"})
    assert [(sample.key, said([sample])[0]) for sample in found] == [
        ("7#0", "seven"),
        ("9#0", "nine"),
        ("9#1", "nine again"),
    ]
    assert shows(found[0], tmp_path / "val2014" / "1.jpg")
    assert found[0].metadata["image_id"] == 7


@pytest.mark.parametrize(("restval", "names"), [(True, ["1.jpg", "2.jpg"]), (False, ["1.jpg"])])
def test_karpathys_restval_counts_as_train_unless_told_otherwise(
    tmp_path: Path, restval: bool, names: list[str]
) -> None:
    files.photos(tmp_path / "val2014", ["1.jpg", "2.jpg", "3.jpg"])
    images = [
        {
            "filename": f"{n}.jpg",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": f"caption {n}"}],
            "cocoid": n,
        }
        for n, split in ((1, "train"), (2, "restval"), (3, "test"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert [s.stem for s in samples({"path": str(tmp_path), "split": "train", "restval": restval})] == names
    assert [s.stem for s in samples({"path": str(tmp_path), "split": "restval"})] == ["2.jpg"]
    (last,) = samples({"path": str(tmp_path), "split": "test"})
    assert last.references == ("caption 3",)
    assert last.metadata["cocoid"] == 3


def test_a_cc3m_tsv_holds_caption_and_local_picture(tmp_path: Path) -> None:
    files.photos(tmp_path / "images", ["a.jpg", "b.jpg"])
    (tmp_path / "train.tsv").write_text("a caption\ta.jpg\nanother\tb.jpg\n")
    found = samples({"path": str(tmp_path)})
    assert said(found) == ["a caption", "another"]
    assert shows(found[1], tmp_path / "images" / "b.jpg")


def test_webdataset_tars_pair_pictures_with_txt_or_json(tmp_path: Path) -> None:
    files.tar(
        tmp_path / "s-000.tar",
        {"x/01.jpg": files.jpeg(1), "x/01.txt": "one", "x/02.jpg": files.jpeg(2), "x/02.txt": "two"},
    )
    body = json.dumps({"captions": ["three", "four"], "source": "web"})
    files.tar(tmp_path / "s-001.tar", {"03.json": body, "03.jpg": files.jpeg(3)})
    found = samples({"path": str(tmp_path / "s-{000..001}.tar")})
    assert said(found) == ["one", "two", "three", "four"]
    assert found[3].metadata == {"source": "web"}
    (tmp_path / "3.jpg").write_bytes(files.jpeg(3))
    assert shows(found[2], tmp_path / "3.jpg")
    assert said(samples({"path": str(tmp_path), "reader": "webdataset", "limit": 1})) == ["one"]


@pytest.mark.parametrize("cell", ["bytes", "struct", "path"])
def test_parquet_pictures_are_bytes_structs_or_paths(tmp_path: Path, cell: str) -> None:
    files.photos(tmp_path / "images", [f"{n}.jpg" for n in range(5)])

    def value(n: int) -> Any:
        data = files.jpeg(n)
        return {"bytes": data, "struct": {"bytes": data, "path": f"{n}.jpg"}, "path": f"{n}.jpg"}[cell]

    rows = [{"image": value(n), "captions": [f"caption {n}", f"other {n}"]} for n in range(5)]
    files.parquet(tmp_path / "train-00000.parquet", rows)
    found = samples({"path": str(tmp_path), "split": "train", "per": "media"})
    assert said(found) == [f"caption {n}" for n in range(5)]
    assert found[4].references == ("caption 4", "other 4")
    assert all(shows(sample, tmp_path / "images" / f"{n}.jpg") for n, sample in enumerate(found))


def test_a_folder_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": files.jpeg(n), "path": None} for n in range(3)], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        str(tmp_path / "d")
    )
    found = samples({"path": str(tmp_path / "d"), "split": "train"})
    assert said(found) == ["a", "b", "c"]
    (tmp_path / "2.jpg").write_bytes(files.jpeg(2))
    assert shows(found[2], tmp_path / "2.jpg")


def test_a_question_becomes_prompt_and_target(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    files.jsonl(
        tmp_path / "qa.jsonl", [{"image": "a.jpg", "question": "What is it?", "answers": ["dog", "cat", "cat"]}]
    )
    (found,) = samples({"path": str(tmp_path)})
    assert found.sentence.parts[1:] == (Text("Question: What is it? Answer:"), Text(" cat", target=True))
    assert found.references == ("dog", "cat", "cat")
    (other,) = samples({"path": str(tmp_path), "prompt": "{question}"})
    assert other.sentence.prompt().text() == "What is it?"


def test_choices_are_shuffled_the_same_way_each_time(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    choices = ["right", "wrong", "bad", "worse"]
    rows = [{"image": "a.jpg", "question": f"q{n}", "answer": "right", "choices": choices} for n in range(40)]
    files.jsonl(tmp_path / "qa.jsonl", rows)
    found = samples({"path": str(tmp_path)})
    places = [sample.metadata["answer_index"] for sample in found]
    assert set(places) == {0, 1, 2, 3}
    assert all(sample.metadata["choices"][place] == "right" for sample, place in zip(found, places, strict=True))
    assert [s.metadata for s in samples({"path": str(tmp_path)})] == [s.metadata for s in found]
    assert [s.metadata["answer_index"] for s in samples({"path": str(tmp_path), "seed": 1})] != places


def test_vqa_v2_joins_questions_with_the_annotations_beside_them(tmp_path: Path) -> None:
    files.photos(tmp_path / "val2014", ["COCO_val2014_000000000042.jpg"])
    questions = {
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question": "Is it red?", "question_id": 420}],
    }
    answers = [{"answer": word, "answer_id": n} for n, word in enumerate(["yes"] * 9 + ["no"])]
    annotation = {"question_id": 420, "image_id": 42, "answers": answers, "multiple_choice_answer": "yes"}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [annotation]}))
    (found,) = samples({"path": str(tmp_path), "split": "val"})
    assert (found.key, said([found]), len(found.references)) == ("420", [" yes"], 10)


def test_messages_take_their_pictures_from_the_row(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg", "b.jpg"])
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "And "}, {"type": "image", "path": "b.jpg"}],
        },
        {"role": "assistant", "content": "Two dogs."},
    ]
    files.jsonl(tmp_path / "chat.jsonl", [{"messages": messages, "images": ["a.jpg"]}])
    (found,) = samples({"path": str(tmp_path)})
    assert found.sentence == Sentence(
        (
            Text("Be brief.", role="system"),
            Image(str(tmp_path / "a.jpg"), role="user"),
            Text("And ", role="user"),
            Image(str(tmp_path / "b.jpg"), role="user"),
            Text("Two dogs.", target=True, role="assistant"),
        )
    )
    assert found.references == ("Two dogs.",)


def test_llavas_marks_become_pictures_only_where_there_is_one(tmp_path: Path) -> None:
    files.photos(tmp_path, ["a.jpg"])
    turns = [{"from": "human", "value": "<image>\nWhat is <b>this</b>?"}, {"from": "gpt", "value": "A dog."}]
    text_only = [{"from": "human", "value": "What does <image> mean?"}, {"from": "gpt", "value": "A mark."}]
    unmarked = [{"from": "human", "value": "Name it."}, {"from": "gpt", "value": "A dog."}]
    rows = [
        {"id": "1", "image": "a.jpg", "conversations": turns},
        {"id": "2", "conversations": text_only},
        {"id": "3", "image": "a.jpg", "conversations": unmarked},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    first, second, third = samples({"path": str(tmp_path)})
    photo = Image(str(tmp_path / "a.jpg"), role="user")
    assert first.sentence.parts[:2] == (photo, Text("What is <b>this</b>?", role="user"))
    assert second.sentence.parts[0] == Text("What does <image> mean?", role="user")
    assert third.sentence.parts[:2] == (photo, Text("Name it.", role="user"))
    assert said([first, second, third]) == ["A dog.", "A mark.", "A dog."]


def test_a_sample_survives_json(tmp_path: Path) -> None:
    for sample in read({"path": str(files.captioned(tmp_path))}):
        assert Sentence.from_json(json.loads(json.dumps(sample.sentence.to_json()))) == sample.sentence
