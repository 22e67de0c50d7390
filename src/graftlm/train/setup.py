"""From a recipe to everything a trainer needs: folder, system, data, features."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from graftlm.config import Recipe, differing_keys, load_recipe, parse_recipe
from graftlm.data.ledger import Ledger
from graftlm.data.readers import Dataset, by_number, read
from graftlm.data.sample import Sample
from graftlm.data.sampler import BucketSampler
from graftlm.data.sentence import MediaPart, Text
from graftlm.data.stream import Stream
from graftlm.encoders.base import Encoder
from graftlm.errors import ConfigError, DataError, UsageError
from graftlm.storage import replace_file, step_folders, write_json
from graftlm.systems.base import Parts, PartsConfig, System, system_class
from graftlm.train.log import Bar, environment
from graftlm.train.processes import processes
from graftlm.train.source import IndexedSource, MixedSource, Source, StreamSource, blind, fitting, with_targets
from graftlm.train.validate import Validation

Loading: TypeAlias = Callable[[PartsConfig], Parts]
"""Finds the frozen parts that a config names."""
Reading: TypeAlias = Callable[[Mapping[str, Any], Ledger], Dataset]
"""Opens what a spec names; bad rows go to the ledger."""

_FREE_TABLES = ("run",)
"""Tables that may differ when a run is resumed: they change no number."""
_BUDGET = "train.max_minutes"
"""May differ too where both recipes have it: the clock sets the rate, so such a run is never repeatable to the bit."""


@dataclass(frozen=True, slots=True)
class Run:
    """All parts of one run."""

    recipe: Recipe
    folder: Path
    system: System
    source: Source
    validation: Validation | None


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe file with every default, the system's own among them. Raises: ConfigError."""
    return load_recipe(path, overrides, system_fields=_fields)


def complete_recipe(tree: Mapping[str, Any]) -> Recipe:
    """The same from plain tables. Raises: ConfigError."""
    return parse_recipe(tree, system_fields=_fields)


@contextmanager
def prepare(
    recipe: Recipe,
    run_folder: str | Path | None,
    *,
    resume: bool,
    quiet: bool,
    load: Loading | None = None,
    reading: Reading = read,
) -> Iterator[Run]:
    """Opens the run's folder, which no other process may use meanwhile, and builds all parts of the run.

    `load` and `reading`: what finds frozen parts and opens data, for those who have them already.
    Raises: ConfigError when the folder holds another recipe's run or is in use; UsageError when `resume` finds nothing.
    """
    recipe = complete_recipe(recipe.to_dict())
    folder = Path(run_folder or recipe.run.folder or Path("runs") / recipe.system.name)
    if resume and not step_folders(folder / "checkpoints"):
        raise UsageError(f"{folder}: expected a checkpoint to go on from, found none; leave out --resume")
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _claim(folder, recipe)
        system = build_system(recipe, load)
        ledger = Ledger(folder / "bad_samples.jsonl", recipe.data.bad_budget)
        source, validation = open_data(system, recipe, ledger, quiet=quiet, reading=reading)
        yield Run(recipe, folder, system, source, validation)


def build_system(recipe: Recipe, load: Loading | None = None) -> System:
    """The system with fresh trained parts, a function of `train.seed`, or with those of `system.start`.

    `load` finds the frozen parts.
    Raises: CheckpointError when that is the graft of another system; ConfigError for a pattern that fits nothing.
    """
    from graftlm.backbones import load_parts
    from graftlm.grafts import copy_from

    cls = system_class(recipe.system.name)
    config = cls.Config.model_validate(recipe.system.options())
    parts = (load or load_parts)(config)
    random.seed(recipe.train.seed)
    np.random.seed(recipe.train.seed % 2**32)
    torch.manual_seed(recipe.train.seed)
    system = cls.build(config, parts)
    if recipe.system.start:
        copy_from(recipe.system.start, system)
    if recipe.system.only:
        system.train_only(recipe.system.only)
    return system


def open_data(
    system: System, recipe: Recipe, ledger: Ledger, *, quiet: bool, reading: Reading = read
) -> tuple[Source, Validation | None]:
    """Training batches and validation; features are computed on the way. Raises: ConfigError for a factor below 0.

    `reading`: what opens a spec, for those who have read it before.
    """
    specs = [recipe.data.train, *({**spec} for spec in recipe.data.also)]
    factors = [1.0, *(_factor(spec) for spec in specs[1:])]
    datasets = [_open(spec, ledger, number, reading) for number, spec in enumerate(specs)]
    val = None if recipe.data.val is None else _validation(recipe.data.val, ledger, reading)
    if recipe.data.cache_features:
        samples = [sample for data in datasets if not isinstance(data, Stream) for sample in data]
        bad = cache_features(system, [*samples, *(val or [])], recipe, ledger, quiet=quiet)
        datasets = [
            data if isinstance(data, Stream) else [one for one in data if one.key not in bad] for data in datasets
        ]
        val = None if val is None else [sample for sample in val if sample.key not in bad]
        ledger.check()
    sources = [
        _source(system, data, recipe, ledger, file=str(spec.get("path", "")), quiet=quiet)
        for spec, data in zip(specs, datasets, strict=True)
    ]
    if val is not None:
        val, _ = fitting(system, val, ledger, str((recipe.data.val or {}).get("path", "")))
    ledger.check()
    told = [source.samples for source in sources if isinstance(source, IndexedSource)]
    system.learn(sample.sentence for samples in told for sample in samples)
    source = sources[0] if len(sources) == 1 else MixedSource(sources, factors)
    return source, Validation(system, val, recipe) if val else None


def _factor(spec: dict[str, Any]) -> float:
    """Takes the factor of its losses out of a dataset's spec."""
    factor = spec.pop("factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise ConfigError(f"data.also: expected a factor above 0, found {factor!r}; leave the dataset out instead")
    return float(factor)


def _validation(spec: Mapping[str, Any], ledger: Ledger, reading: Reading) -> Sequence[Sample]:
    return with_targets(by_number(reading(spec, ledger), spec), "data.val")


def _open(spec: Mapping[str, Any], ledger: Ledger, number: int, reading: Reading) -> Stream[Any] | Sequence[Sample]:
    data = reading(spec, ledger)
    where = f"data.also[{number - 1}]" if number else "data.train"
    return data if isinstance(data, Stream) else with_targets(data, where)


def _source(
    system: System, data: Stream[Any] | Sequence[Sample], recipe: Recipe, ledger: Ledger, *, file: str, quiet: bool
) -> Source:
    size, seed, chunk = _batch_size(recipe), recipe.train.seed, recipe.data.bucket_batches
    if isinstance(data, Stream):
        return StreamSource(system, data, size, seed=seed, chunk=chunk, ledger=ledger)
    with Bar("lengths", max(1, len(data)), quiet=quiet) as bar:
        kept, lengths = fitting(system, data, ledger, file, seen=bar.move)
        bar.move(len(data))
    if data and not kept:
        raise DataError(f"data.train: none of {len(data)} sentences fits into the longest row; {ledger.summary()}")
    positions = [length.positions for length in lengths]
    drop_last = recipe.data.drop_last or int(processes().num_processes) > 1
    return IndexedSource(kept, lengths, BucketSampler(positions, size, seed=seed, chunk=chunk, drop_last=drop_last))


def _batch_size(recipe: Recipe) -> int:
    """Sentences of a batch over all processes."""
    return recipe.train.batch_size * int(processes().num_processes)


def cache_features(
    system: System, samples: Sequence[Sample], recipe: Recipe, ledger: Ledger, *, quiet: bool
) -> set[str]:
    """Computes the features of all media once, and lets the system's frozen encoders read them from disk.

    Returns the keys of samples whose media cannot be read; they are in the ledger.
    """
    from graftlm.backbones import home
    from graftlm.features import CachedEncoder

    media: dict[str, list[tuple[MediaPart | Text, Sample]]] = {}
    for sample in samples:
        sentence = blind(sample.sentence) if recipe.data.blind else sample.sentence
        for part in system.perceived(sentence):
            media.setdefault(type(part).__name__.lower(), []).append((part, sample))
    bad: set[str] = set()
    for modality, encoder in list(system.encoders.items()):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            continue
        assert isinstance(encoder, Encoder)
        cached = CachedEncoder(encoder, home() / "features")
        given = media.get(modality, [])
        with processes().main_process_first():  # the others find its features
            stats = cached.build([part for part, _ in given], workers=recipe.run.workers, quiet=quiet)
        for position, error in stats.bad.items():
            key = given[position][1].key
            bad.add(key)
            ledger.add(error.reason, str(error), file=str(recipe.data.train.get("path", "")), row=key)
        system.encoders[modality] = cached
    return bad


def _fields(name: str) -> Any:
    return system_class(name).Config


def _claim(folder: Path, recipe: Recipe) -> None:
    """Writes recipe.yaml, or checks it where a run has begun. Raises: ConfigError naming the keys that differ."""
    path = folder / "recipe.yaml"
    if path.is_file() and step_folders(folder / "checkpoints"):
        before, now = read_recipe(path).to_dict(), recipe.to_dict()
        tables = [table for table in now if table not in _FREE_TABLES]
        keys = differing_keys({table: before[table] for table in tables}, {table: now[table] for table in tables})
        if keys == [_BUDGET] and before["train"]["max_minutes"] and now["train"]["max_minutes"]:
            keys = []
        if keys:
            budget = f"; {_BUDGET} may change only where the run began with one" if _BUDGET in keys else ""
            raise ConfigError(
                f"{folder} holds a run of another recipe (different: {', '.join(keys)}{budget}); "
                "choose another --run-folder, or the same recipe to go on"
            )
    if processes().is_main_process:
        replace_file(path, recipe.to_yaml(described=True).encode())
        write_json(folder / "environment.json", environment())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with the process, however it ends."""
    if not processes().is_main_process:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another process is training here; wait or choose another folder") from None
        yield
