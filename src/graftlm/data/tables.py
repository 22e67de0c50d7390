"""Rows of any table: .jsonl, .json, .csv, .tsv, .parquet, lines of text, or what the `datasets` library loads."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.data.ledger import Ledger
from graftlm.data.readers.base import names_split, records, same_split, text_lines
from graftlm.errors import BadSampleError, DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def table_rows(
    path: str, split: str | None, ledger: Ledger, header: Sequence[str] = ()
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """File, number and content of every row of a split; several splits are joined by "+".

    `header`: the columns of a .csv whose first line is a row. A row's own column "split" counts where the file is not
    named after one. Raises: DataError when there is no such split or it cannot be read.
    """
    place = Path(path)
    for wanted in (split or "").split("+"):
        marks = (place / "dataset_info.json", place / "dataset_dict.json")
        if not place.exists() or any(mark.is_file() for mark in marks):
            yield from _from_datasets(path, wanted)
        else:
            file = table_file(place, wanted)
            is_named = not wanted or file.stem == wanted or names_split(file, wanted)
            rows = list(_file_rows(file, ledger, header))
            kept = rows if is_named else [(number, row) for number, row in rows if _is_of(row, wanted)]
            if rows and not kept:
                raise DataError(f"{file}: expected rows of split '{wanted}', found none; name another split or none")
            yield from ((file.stem, number, row) for number, row in kept)


def table_file(path: Path, split: str) -> Path:
    """The file of a split in a folder: the one of that very name, else the one named after it, else the only one.

    Raises: DataError when there is none or more than one.
    """
    if path.is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and _is_table(file))
    for fits in (lambda file: file.stem == split, lambda file: same_split(split, file.stem)):
        if split and (found := [file for file in files if fits(file)]):
            return found[0]
    named = [file for file in files if split and names_split(file, split)] or ([] if split else files)
    named = named or (files if len(files) == 1 else [])
    if len(named) == 1:
        return named[0]
    there = ", ".join(file.name for file in files) or "none"
    raise DataError(f"{path}: expected one table{f' of split {split!r}' if split else ''}, found {there}; name a split")


def _is_table(file: Path) -> bool:
    return not file.name.lower().startswith(("readme", "classes", "license", "dataset_"))


def _is_of(row: Mapping[str, Any], split: str) -> bool:
    return isinstance(row.get("split"), str) and same_split(split, row["split"])


def _file_rows(file: Path, ledger: Ledger, header: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".json"):
        yield from records(file, ledger)
    elif suffix == ".csv":
        yield from _csv_rows(file, header)
    elif suffix == ".tsv":
        yield from _tsv_rows(file, ledger)
    elif suffix == ".parquet":
        yield from _parquet_rows(file)
    else:
        yield from ((number, {"line": line}) for number, line in text_lines(file, ledger))


def _csv_rows(file: Path, header: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Quoted cells may run over several lines; a first line that names none of the columns is a row."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            rows = csv.reader(handle)
            first = next(rows, [])
            if header and not set(first) & set(header):
                yield 1, dict(zip(header, first, strict=False))
                names = list(header)
            else:
                names = first
            for number, row in enumerate(rows, start=2):
                if row:
                    yield number, dict(zip(names, row, strict=False))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a table ({error}); write it as UTF-8, or as .jsonl") from None


def _tsv_rows(file: Path, ledger: Ledger) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Tabs part the cells and nothing is quoted, as in GLUE."""
    names: list[str] = []
    for number, line in text_lines(file, ledger):
        cells = [cell.strip() for cell in line.split("\t")]
        if not names:
            names = cells
        elif len(cells) != len(names):
            with ledger.row(file, number):
                raise BadSampleError("wrong-type", f"expected {len(names)} cells, found {len(cells)}")
        else:
            yield number, dict(zip(names, cells, strict=True))


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{file}: expected a parquet file, found something else ({error}); fetch it again") from None
    yield from enumerate(rows, start=1)


def _from_datasets(path: str, split: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """A folder that `datasets` wrote, or a hub id."""
    import datasets  # type: ignore[import-untyped]
    from datasets.exceptions import DatasetsError  # type: ignore[import-untyped]

    try:
        if not Path(path).exists():
            table = datasets.load_dataset(path, split=split or "train")
        else:
            found = datasets.load_from_disk(path)
            splits = dict(found) if hasattr(found, "keys") else {str(found.split): found}
            names = [name for name in splits if (same_split(split, name) if split else len(splits) == 1)]
            if not names:
                raise DataError(f"{path}: expected the split '{split}', found {', '.join(splits)}; name one of them")
            table = splits[names[0]]
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, DatasetsError) as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{path}: expected a file, a folder or a data set that `datasets` can load ({first}); check the path"
        ) from None
    yield from ((split or "train", number, row) for number, row in enumerate(table, start=1))
