"""Every dataset's own files as sentences, and tables of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.ledger import Ledger
from graftlm.data.readers import detect, read_all
from graftlm.data.sample import Sample
from graftlm.errors import ConfigError, DataError


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path, dataset: str) -> Path:
    """The first rows of a dataset as its own files have them."""
    place = folder / {"ag_news": "ag_news", "trec": "trec", "sst2": "sst2", "imdb": "aclImdb"}.get(
        dataset, {"boolq": "BoolQ", "cb": "CB", "rte": "RTE", "multirc": "MultiRC"}.get(dataset, dataset)
    )
    place.mkdir(parents=True)
    (place / "README.md").write_text("about")
    if dataset == "boolq":
        rows = [{"question": f"is it {n}", "passage": f"About {n}.", "idx": n, "label": bool(n % 2)} for n in range(8)]
        jsonl(place / "val.jsonl", rows)
        jsonl(place / "fewglue_train.jsonl", rows[:4])
        jsonl(place / "fewglue_dev32.jsonl", rows[4:])
    elif dataset in ("cb", "rte"):
        names = ["entailment", "contradiction", "neutral"] if dataset == "cb" else ["entailment", "not_entailment"]
        rows = [{"premise": f"P {n}", "hypothesis": f"H {n}", "label": names[n % len(names)]} for n in range(6)]
        jsonl(place / "train.jsonl", rows)
        jsonl(place / "fewglue_train.jsonl", rows[:2])
        jsonl(place / "val.jsonl", rows[::-1])
        jsonl(place / "test.jsonl", [{key: row[key] for key in ("premise", "hypothesis")} for row in rows])
    elif dataset == "multirc":
        answers = [{"text": "yes it is", "label": 1}, {"text": "never", "label": 0}, {"text": "no label"}]
        passage = {"text": "A text.", "questions": [{"question": "Is it?", "answers": answers}]}
        jsonl(place / "val.jsonl", [{"idx": n, "passage": passage} for n in range(2)])
    elif dataset == "sst2":
        (place / "train.tsv").write_bytes(b'label\tsentence\r\n0\ta "bad film\r\n1\tfine\r\n')
        (place / "dev.tsv").write_bytes(b"label\tcontent\n1\tgood\n")
    elif dataset == "trec":
        (place / "train.txt").write_text("DESC:manner How did it go ?\nNUM:count How many ?\n")
        (place / "test.txt").write_text("ABBR:exp What is it short for ?\n")
    elif dataset == "ag_news":
        (place / "test.csv").write_text('"3","A title","The body, ""quoted""\\nand on"\n"1","T","B"\n')
        (place / "classes.txt").write_text("World\nSports\n")
    else:
        for split, kind, text in (("train", "pos", "Nice<br />film"), ("train", "neg", "No"), ("test", "pos", "Oh")):
            (place / split / kind).mkdir(parents=True)
            (place / split / kind / "0_1.txt").write_text(text)
    return place


def found(place: Path, **spec: Any) -> list[Sample]:
    return list(read_all({"path": str(place), **spec}))


def told(sample: Sample) -> tuple[str, str]:
    return sample.sentence.text(), sample.references[0]


EXPECTED = {
    "boolq": ("val", "About 1. Question: is it 1? The answer was yes.", "yes", 1),
    "cb": ("train", "hypothesis: H 1. premise: P 1 answer: no", "contradiction", 1),
    "rte": ("train", "sentence1: P 1 sentence2: H 1 answer: no", "not_entailment", 1),
    "multirc": ("val", "question: Is it? answer: never. paragraph: A text. The answer was No", "no", 1),
    "sst2": ("train", "fine It was great.", "positive", 1),
    "imdb": ("train", "Nice film All in all, it was good.", "positive", 1),
    "ag_news": ("test", "T B This topic is about politics.", "World", 1),
    "trec": ("train", "Question: How many ?\nAnswer type: number", "NUM", 1),
}


@pytest.mark.parametrize("dataset", EXPECTED)
def test_a_datasets_own_files_become_sentences(tmp_path: Path, dataset: str) -> None:
    place = make(tmp_path, dataset)
    split, text, name, number = EXPECTED[dataset]
    assert detect(str(place)) == "labelled"
    sample = found(place, split=split)[number]
    assert told(sample) == (text, name)
    assert sample.metadata["labels"][sample.metadata["label"]] == name
    assert sample.metadata["template"] == f"{dataset}/default"
    assert found(place, split=split, template=dataset)[number] == sample


def test_the_file_of_a_split_is_the_one_of_that_very_name(tmp_path: Path) -> None:
    place = make(tmp_path, "rte")
    assert len(found(place, split="train")) == 6
    assert len(found(place, split="fewglue_train")) == 2
    assert found(place, split="validation")[0].key == "val:1"
    both = found(place, split="fewglue_train+val")
    assert len(both) == 8
    assert len({sample.key for sample in both}) == 8
    with pytest.raises(DataError, match="expected one table of split 'other', found"):
        found(place, split="other")


def test_rows_without_a_class_cannot_be_used(tmp_path: Path) -> None:
    place = make(tmp_path, "rte")
    with pytest.raises(DataError, match=r"expected usable rows, found none .*missing-column"):
        found(place, split="test")


def test_answers_without_a_label_are_left_out_and_each_has_its_key_and_passage(tmp_path: Path) -> None:
    place = make(tmp_path, "multirc")
    samples = found(place, split="val")
    assert [sample.key for sample in samples] == ["val:1:0:0", "val:1:0:1", "val:2:0:0", "val:2:0:1"]
    assert {sample.metadata["group"] for sample in samples} == {"A text."}


def test_few_shots_and_their_dev_rows_come_from_the_same_split(tmp_path: Path) -> None:
    place = make(tmp_path, "boolq")
    spec = {"split": "fewglue_train+fewglue_dev32", "shots": 2, "draw": 1}
    train, dev = (found(place, part=part, **spec) for part in ("train", "dev"))
    assert len(train) == len(dev) == 2
    assert {sample.metadata["label"] for sample in train} == {0, 1}
    assert not {sample.key for sample in train} & {sample.key for sample in dev}
    with pytest.raises(ConfigError, match="expected 'part' to be train or dev"):
        found(place, split="val", shots=2)


def test_a_table_of_ones_own_is_read_from_any_format(tmp_path: Path) -> None:
    template = tmp_path / "stars.yaml"
    template.write_text(
        'text: "{review} It was {mask}"\nwords: {bad: bad, good: good}\n'
        "table: {label: stars, classes: {bad: [1], good: [5]}, columns: {review: body}}\n"
    )
    rows = [{"body": "So, so", "stars": 1, "split": "train"}, {"body": "Fine", "stars": 5, "split": "test"}]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv").write_text('body,stars,split\n"So, so",1,train\nFine,5,test\n')
    (tmp_path / "d.tsv").write_text("body\tstars\tsplit\nSo, so\t1\ttrain\nFine\t5\ttest\n")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.json", "c.csv", "d.tsv", "e.parquet"):
        spec = {"reader": "labelled", "template": str(template)}
        samples = found(tmp_path / name, **spec)
        assert [told(sample) for sample in samples] == [("So, so It was bad", "bad"), ("Fine It was good", "good")]
        assert [told(sample)[0] for sample in found(tmp_path / name, split="test", **spec)] == ["Fine It was good"]


def test_a_folder_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"text": "Oh no", "label": 0}, {"text": "Oh yes", "label": 1}])
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(str(tmp_path / "imdb"))
    assert [told(one) for one in found(tmp_path / "imdb", reader="labelled", split="test")] == [
        ("Oh yes All in all, it was good.", "positive")
    ]
    with pytest.raises(DataError, match="expected the split 'dev', found train, test"):
        found(tmp_path / "imdb", reader="labelled", split="dev")


def test_bad_rows_go_to_the_ledger(tmp_path: Path) -> None:
    place = tmp_path / "rte"
    jsonl(place / "train.jsonl", [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 7, 1)])
    ledger = Ledger()
    samples = read_all({"path": str(place)}, ledger)
    assert [sample.metadata["label"] for sample in samples] == [0, 1]
    assert ledger.reasons == {"unknown-class": 1}


def test_a_folder_of_another_name_asks_for_a_template(tmp_path: Path) -> None:
    jsonl(tmp_path / "x" / "train.jsonl", [{"a": 1}])
    with pytest.raises(ConfigError, match="set 'template' to one of ag_news, boolq"):
        found(tmp_path / "x", reader="labelled")
