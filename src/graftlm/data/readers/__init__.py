"""Files in, samples out: one file per format, and nothing here knows a model.

`read` takes what a recipe's data table says; bad rows go to the ledger, and a file that cannot be used is an error.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from pydantic import ValidationError

from graftlm.data.ledger import Ledger
from graftlm.data.readers.base import Spec
from graftlm.data.sample import Sample
from graftlm.data.stream import Stream
from graftlm.errors import ConfigError, DataError

Dataset: TypeAlias = Sequence[Sample] | Stream[Any]
"""A sequence of samples, or a stream of them that stops and resumes exactly."""


def reader_names() -> list[str]:
    """The readers that exist: one file each in this folder."""
    folder = Path(__file__).parent
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name != "base")


def read(spec: Mapping[str, Any], ledger: Ledger | None = None) -> Dataset:
    """The samples that a spec names.

    Args:
        spec: `path`, and optionally `reader` (guessed from the path), `split`, `limit`, `per` and the reader's own
        ledger: where bad rows go; without one they are left out and forgotten

    Raises: ConfigError for an unknown reader or key; DataError when nothing can be read or the ledger's budget is
        spent.
    """
    parsed, module = parse(spec)
    dataset: Dataset = module.read(parsed, Ledger() if ledger is None else ledger)
    return dataset


def read_all(spec: Mapping[str, Any], ledger: Ledger | None = None) -> Sequence[Sample]:
    """As `read`, for those who need every sample by number; a stream is refused.

    Raises: as `read`; ConfigError for a stream.
    """
    return by_number(read(spec, ledger), spec)


def by_number(dataset: Dataset, spec: Mapping[str, Any]) -> Sequence[Sample]:
    """A dataset whose samples can be asked for by number. Raises: ConfigError for a stream."""
    if isinstance(dataset, Stream):
        raise ConfigError(f"{spec.get('path')}: expected samples by number, found a stream; leave out 'stream'")
    return dataset


def parse(spec: Mapping[str, Any]) -> tuple[Spec, ModuleType]:
    """The reader's own spec, checked, and its module. Raises: ConfigError."""
    name = spec.get("reader") or detect(str(spec.get("path", "")))
    if name not in reader_names():
        known = ", ".join(reader_names())
        raise ConfigError(f"unknown reader '{name}'{_hint(str(name), reader_names())}; there are: {known}")
    module = importlib.import_module(f"{__name__}.{name}")
    model: type[Spec] = module.Spec
    try:
        return model(**{**spec, "reader": name}), module
    except ValidationError as error:
        raise ConfigError(_sentence(error, str(name), list(model.model_fields))) from None


def detect(path: str) -> str:
    """The one reader that claims a path. Raises: DataError for none, ConfigError for several."""
    if not path:
        raise ConfigError("data: expected 'path', a file or folder, found none")
    claims = [name for name in reader_names() if importlib.import_module(f"{__name__}.{name}").claims(path)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise ConfigError(f"{path}: several readers can read this ({', '.join(claims)}); say which with 'reader'")
    if not Path(path).exists():
        raise DataError(f"{path}: expected a file or folder, found none; check the path")
    known = ", ".join(reader_names())
    raise DataError(f"{path}: found no data of a known format; name a file in it, or one of the readers: {known}")


def _sentence(error: ValidationError, reader: str, fields: list[str]) -> str:
    first = error.errors()[0]
    key = ".".join(str(place) for place in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"data (reader {reader}): unknown key '{key}'{_hint(key, fields)}; there are: {', '.join(fields)}"
    if first["type"] == "missing":
        return f"data (reader {reader}): expected '{key}', found none"
    return f"data (reader {reader}): '{key}': {first['msg']}, found {first['input']!r}"


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
