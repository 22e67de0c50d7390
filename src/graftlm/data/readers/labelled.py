"""Classification tasks as sentences by a template: BoolQ, CB, RTE, MultiRC, SST-2, IMDB, AG News, TREC, or a table.

A dataset that is ready is known by its template (`template: rte/default`) or by the name of its folder; for a table of
your own `template` is the path of a YAML file. Few-shot draws and the rows that choices are made on come from the split
that is read, never from another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from graftlm.data.carving import carve, drawn
from graftlm.data.labelled import LabelledRow, Template, dataset_names, load_template, row_of
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import Samples
from graftlm.data.tables import table_file, table_rows
from graftlm.errors import BadSampleError, ConfigError, DataError

_FOLDERS = {"sst": "sst2", "sst-2": "sst2", "agnews": "ag_news", "aclimdb": "imdb"}


class Spec(base.Spec):
    """What to read; `split` may join several, "train+val"."""

    template: str = Field("", description="dataset/template, dataset, or a .yaml file; empty: by the folder's name")
    rows: int | None = Field(None, ge=1, description="so many rows drawn from the split, always the same; empty: all")
    part: Literal["all", "train", "dev"] = Field("all", description="train: to learn from, dev: to choose by, or all")
    shots: int | None = Field(None, ge=1, description="rows to learn from, classes even, and as many to choose by")
    dev_fraction: float = Field(0.1, gt=0, lt=1, description="of the rows, to choose by, where there are no shots")
    draw: int = Field(0, ge=0, description="seed of which rows are shots and which are dev")


def claims(path: str) -> bool:
    """Whether the folder is named after a dataset that is ready, and holds a table of it."""
    place = Path(path)
    dataset = _dataset(place)
    if not dataset or not place.is_dir():
        return False
    if _is_reviews(place):
        return True
    try:
        table_file(place, "train")
    except DataError:
        return bool([file for file in place.iterdir() if file.stem in ("val", "dev", "test")])
    return True


def read(spec: Spec, ledger: Ledger) -> Samples[LabelledRow]:
    """The rows as sentences. Raises: ConfigError, DataError when none can be used."""
    template = load_template(spec.template or _dataset_of(spec.path))
    rows = drawn(_rows(template, spec, ledger), spec.rows)
    if spec.part != "all":
        train, dev = carve(rows, shots=spec.shots, dev=spec.dev_fraction, seed=spec.draw)
        rows = [rows[place] for place in (train if spec.part == "train" else dev)]
    elif spec.shots is not None:
        raise ConfigError("data (reader labelled): shots: expected 'part' to be train or dev beside it, found all")
    kept = base.usable(rows, spec, ledger, Path(spec.path))
    return Samples(kept, lambda row, _: template.sample(row), (1 for _ in kept))


def _rows(template: Template, spec: Spec, ledger: Ledger) -> list[LabelledRow]:
    found: list[LabelledRow] = []
    seen: set[str] = set()
    for file, number, record in _records(template, spec, ledger):
        with ledger.row(file, number):
            for key, flat in _unfolded(template.table.rows, record, f"{file}:{number}"):
                if key in seen:
                    raise BadSampleError("duplicate-id", f"expected each row once, found {key} again")
                seen.add(key)
                found.append(row_of(template, flat, key))
    return found


def _records(template: Template, spec: Spec, ledger: Ledger) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    if _is_reviews(Path(spec.path)):
        return _reviews(Path(spec.path), spec.split or "train")
    return table_rows(spec.path, spec.split, ledger, template.table.header)


def _unfolded(shape: str, record: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows that one record holds, with their keys. Raises: BadSampleError for another shape."""
    if shape == "multirc" and isinstance(record.get("passage"), dict):
        yield from _answers(record["passage"], key)
    elif shape == "trec" and "line" in record:
        kind, _, question = str(record["line"]).partition(" ")
        yield key, {"label": kind.partition(":")[0], "question": question}
    else:
        yield key, record


def _answers(passage: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """One row for every answer of every question (MultiRC); those without a label are left out."""
    for place, question in enumerate(_list(passage, "questions")):
        for number, answer in enumerate(_list(question, "answers")):
            if "label" in answer:
                yield (
                    f"{key}:{place}:{number}",
                    {
                        "paragraph": passage.get("text"),
                        "question": question.get("question"),
                        "answer": answer.get("text"),
                        "label": answer["label"],
                    },
                )


def _list(record: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = record.get(name)
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):
        return found
    raise BadSampleError("wrong-type", f"expected a list of objects '{name}', found {type(found).__name__}")


def _is_reviews(place: Path) -> bool:
    """Whether it is the folder of the IMDB release: train/pos/*.txt and so on."""
    return (place / "train" / "pos").is_dir() or (place / "test" / "pos").is_dir()


def _reviews(place: Path, split: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    number = 0
    for kind in ("neg", "pos"):
        if not (place / split / kind).is_dir():
            raise DataError(f"{place}: expected the folder {split}/{kind}, found none; name another split")
        for file in sorted((place / split / kind).glob("*.txt")):
            number += 1
            text = file.read_text(encoding="utf-8", errors="replace").replace("<br />", " ")
            yield split, number, {"text": text, "label": kind}


def _dataset(place: Path) -> str:
    """The dataset that a folder, or a file's folder, is named after; empty for none."""
    for folder in (place.name, place.parent.name if place.is_file() else ""):
        name = folder.lower()
        name = _FOLDERS.get(name, name)
        if name in dataset_names():
            return name
    return ""


def _dataset_of(path: str) -> str:
    found = _dataset(Path(path))
    if not found:
        ready = ", ".join(dataset_names())
        raise ConfigError(
            f"{path}: expected a template, found none; set 'template' to one of {ready}, or to a .yaml file"
        )
    return found
