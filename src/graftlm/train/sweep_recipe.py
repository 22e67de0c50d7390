"""A sweep's recipe: methods, datasets and seeds in one YAML file, and the recipe of every run that follows from it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from graftlm.config import Recipe, Table, apply_override, complaint, read_tree
from graftlm.data.labelled import load_template
from graftlm.errors import ConfigError, unknown
from graftlm.systems.base import system_class
from graftlm.train.setup import complete_recipe

Seed = Annotated[int, Field(ge=0)]
_TABLES = ("system", "data", "train", "evaluate", "run")
_FREE = ("run",)


class SweepTable(Table):
    """What is run, and where it goes."""

    seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2, 3, 4], description="of draws, weights and order")
    tune_seeds: list[Seed] = Field(
        default_factory=lambda: [0], description="seeds whose dev rows choose among `tune`; the reported rows never do"
    )
    data: str = Field("data", description="folder that the datasets' paths are relative to")
    folder: str | None = Field(None, description="where the runs are kept; null: runs/<name of the recipe>")
    results: str = Field("docs/results", description="where table, plot and rows go")
    keep_grafts: bool = Field(False, description="keep every run's graft, and not its numbers alone")
    resamples: int = Field(2000, ge=100, description="of the bootstrap over rows and seeds")


class DatasetTable(Table):
    """One dataset: what is learnt from, and what is reported."""

    path: str = Field(description="file, folder or hub id, relative to sweep.data")
    template: str = Field(description="dataset/template, dataset, or a .yaml file")
    train: str = Field("train", description="split to learn and to choose from; several as a+b")
    test: str = Field("val", description="split that is reported, and nothing else is done with")
    shots: int | None = Field(None, ge=1, description="rows to learn from, and as many others to choose by; null: all")
    train_rows: int | None = Field(None, ge=1, description="so many rows drawn of `train`, always the same; null: all")
    test_rows: int | None = Field(None, ge=1, description="so many rows drawn from `test`, always the same; null: all")
    dev_fraction: float = Field(0.1, gt=0, lt=1, description="of `train`, to choose by, where there are no shots")
    changes: dict[str, Any] = Field(default_factory=dict, description="table.key: value for all methods on this data")


class MethodTable(Table):
    """One method: its own tables over the common ones, and what is chosen on dev rows."""

    system: dict[str, Any] = Field(description="name and fields of the system")
    data: dict[str, Any] = Field(default_factory=dict, description="over common.data")
    train: dict[str, Any] = Field(default_factory=dict, description="over common.train")
    evaluate: dict[str, Any] = Field(default_factory=dict, description="over common.evaluate")
    run: dict[str, Any] = Field(default_factory=dict, description="over common.run")
    tune: dict[str, list[Any]] = Field(default_factory=dict, description="table.key: values to choose from")
    settings: dict[str, str] = Field(default_factory=dict, description="of the classification task, as calibrate: yes")
    base: str = Field("", description="the method that this one is compared with, row by row")
    datasets: list[str] = Field(default_factory=list, description="on these alone; empty: on all")
    draws: bool = Field(True, description="false: nothing is trained or drawn, so that one run stands for every seed")


class SweepRecipe(Table):
    """A whole sweep."""

    sweep: SweepTable = Field(default_factory=lambda: SweepTable.model_validate({}))
    common: dict[str, dict[str, Any]] = Field(default_factory=dict, description="tables of every run")
    datasets: dict[str, DatasetTable]
    methods: dict[str, MethodTable]
    pretrained: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict, description="recipes trained once before all; '@name' in a system stands for the graft"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for table in self.common:
            if table not in _TABLES:
                raise ValueError(unknown("table of common", table, _TABLES))
        if not self.datasets or not self.methods:
            raise ValueError("expected at least one dataset and one method, found none of them")
        for key, seeds in (("seeds", self.sweep.seeds), ("tune_seeds", self.sweep.tune_seeds)):
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"sweep.{key}: expected one seed or more, each once, found {seeds}")
        for name, method in self.methods.items():
            if method.base and method.base not in self.methods:
                raise ValueError(f"methods.{name}.base: {unknown('method', method.base, self.methods)}")
            for dataset in method.datasets:
                if dataset not in self.datasets:
                    raise ValueError(f"methods.{name}.datasets: {unknown('dataset', dataset, self.datasets)}")
            if any(not values for values in method.tune.values()):
                raise ValueError(f"methods.{name}.tune: expected values to choose from, found an empty list")
            if method.tune and not method.draws:
                raise ValueError(f"methods.{name}.draws: a method that is tuned is trained, found false; leave it out")
        return self

    def only(self, names: Iterable[str]) -> SweepRecipe:
        """The part of the sweep that these methods and datasets make. Raises: ConfigError for another name."""
        wanted = list(names)
        for name in wanted:
            if name not in self.methods and name not in self.datasets:
                raise ConfigError(unknown("method or dataset", name, [*self.methods, *self.datasets]))
        methods = {name: table for name, table in self.methods.items() if name in wanted} or self.methods
        datasets = {name: table for name, table in self.datasets.items() if name in wanted} or self.datasets
        pretrained = {name: table for name, table in self.pretrained.items() if name in _begun_from(methods)}
        return self.model_copy(update={"methods": methods, "datasets": datasets, "pretrained": pretrained})


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a method on a dataset with a seed and what was chosen for it.

    Attributes:
        recipe: all that `graft train` needs; test: the spec of the rows that are reported
        settings: of the classification task
    """

    dataset: str
    method: str
    seed: int
    choice: Mapping[str, Any]
    recipe: Recipe
    test: Mapping[str, Any]
    settings: Mapping[str, str]

    @property
    def id(self) -> str:
        """Name of its folder; another recipe is another name."""
        return f"{self.dataset}-{self.method}-s{self.seed}-{digest(self.recipe, self.test, self.settings)}"


def _begun_from(methods: Mapping[str, MethodTable]) -> set[str]:
    """Names of the pretrained grafts that methods begin with."""
    values: list[Any] = []
    for table in methods.values():
        values += [*table.system.values(), *itertools.chain(*table.tune.values())]
    return {value[1:] for value in values if isinstance(value, str) and value.startswith("@")}


def digest(recipe: Recipe, *more: Mapping[str, Any]) -> str:
    """Ten hex digits of a recipe, without what changes no number, and of what else decides a run."""
    tables = {table: values for table, values in recipe.to_dict().items() if table not in _FREE}
    content = json.dumps([tables, *map(dict, more)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepRecipe:
    """A sweep's file with ``a.b=c`` overrides. Raises: ConfigError, one sentence with the place."""
    tree = read_tree(Path(path))
    changed = {apply_override(tree, override) for override in overrides}
    return parse_sweep(tree, where=str(path), changed=changed)


def parse_sweep(tree: Mapping[str, Any], *, where: str = "sweep", changed: Iterable[str] = ()) -> SweepRecipe:
    """A sweep from plain tables. Raises: ConfigError."""
    try:
        return SweepRecipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(complaint(error, SweepRecipe, where, (), set(changed))) from None


def choices(method: MethodTable) -> list[dict[str, Any]]:
    """Every combination of what is chosen from."""
    keys = list(method.tune)
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*method.tune.values())]


def methods_of(sweep: SweepRecipe, dataset: str) -> list[str]:
    """The methods that run on a dataset."""
    return [name for name, table in sweep.methods.items() if not table.datasets or dataset in table.datasets]


def seeds_of(sweep: SweepRecipe, method: str) -> list[int]:
    """The seeds that a method is run with: the first alone where nothing is drawn."""
    return sweep.sweep.seeds if sweep.methods[method].draws else sweep.sweep.seeds[:1]


def plan(sweep: SweepRecipe) -> Iterator[tuple[str, str, int]]:
    """Dataset, method and the number of runs at most, one after the other."""
    for dataset in sweep.datasets:
        for method in methods_of(sweep, dataset):
            count = len(choices(sweep.methods[method]))
            tuning = count * len(sweep.sweep.tune_seeds) if count > 1 else 0
            yield dataset, method, tuning + len(seeds_of(sweep, method))


def pretraining(sweep: SweepRecipe, name: str) -> Recipe:
    """The recipe of what methods begin with: its own tables over the common ones, its data in the same folder.

    Raises: ConfigError when they make no recipe.
    """
    tree = _over_common(sweep, sweep.pretrained[name])
    for spec in (tree["data"].get("train"), tree["data"].get("val")):
        if isinstance(spec, dict) and "path" in spec:
            spec["path"] = str(Path(sweep.sweep.data) / str(spec["path"]))
    return _complete(tree, f"pretrained.{name}")


def job(
    sweep: SweepRecipe,
    dataset: str,
    method: str,
    seed: int,
    choice: Mapping[str, Any],
    grafts: Mapping[str, Path] | None = None,
) -> Job:
    """One run's recipe: common tables, then the method's, then the dataset's changes, then what was chosen.

    `grafts`: where what was pretrained lies, by name. Raises: ConfigError when they make no recipe.
    """
    table, own = sweep.datasets[dataset], sweep.methods[method]
    tree = _over_common(sweep, {name: getattr(own, name) for name in _TABLES})
    for dotted, value in {**table.changes, **choice}.items():
        _put(tree, dotted, value)
    path = str(Path(sweep.sweep.data) / table.path)
    spec = {"reader": "labelled", "path": path, "template": table.template}
    carved = {"split": table.train, "draw": seed} | _given(shots=table.shots, rows=table.train_rows)
    if table.shots is None:
        carved["dev_fraction"] = table.dev_fraction
    tree["data"] |= {"train": spec | carved | {"part": "train"}, "val": spec | carved | {"part": "dev"}}
    tree["train"]["seed"] = seed
    _fill(tree["system"], table.template, seed, grafts or {})
    recipe = _complete(tree, f"{method} on {dataset}")
    test = spec | {"split": table.test} | _given(rows=table.test_rows)
    return Job(dataset, method, seed, dict(choice), recipe, test, own.settings)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    table, _, key = dotted.partition(".")
    if table not in _TABLES or not key:
        raise ConfigError(f"sweep: '{dotted}': expected table.key, the table one of {', '.join(_TABLES)}")
    tree[table][key] = copy.deepcopy(value)


def _over_common(sweep: SweepRecipe, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in _TABLES:
        tree[name] = copy.deepcopy({**sweep.common.get(name, {}), **tables.get(name, {})})
    return tree


def _complete(tree: Mapping[str, Any], where: str) -> Recipe:
    try:
        return complete_recipe(tree)
    except ConfigError as error:
        raise ConfigError(f"sweep: {where}: {error}") from None


def _fill(system: dict[str, Any], template: str, seed: int, grafts: Mapping[str, Path]) -> None:
    """What the sweep knows and a system may ask for: the template's classes for a head of its own, the seed of a draw,
    and where the graft lies that it begins with.
    """
    fields = system_class(str(system.get("name"))).Config.model_fields
    has_head = "head" not in fields or system.get("head", fields["head"].default) == "pooled"
    if "num_classes" in fields and "num_classes" not in system and has_head:
        system["num_classes"] = len(load_template(template).classes)
    if "draw" in fields:
        system.setdefault("draw", seed)
    for key, value in system.items():
        if isinstance(value, str) and value.startswith("@"):
            if value[1:] not in grafts:
                raise ConfigError(f"sweep: {key}: {unknown('pretrained graft', value[1:], grafts)}")
            system[key] = str(grafts[value[1:]])


def best_choice(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The choice of the runs that did best on their dev rows: by mean accuracy, then by mean log-loss, then the first.

    A run that failed counts as worse than any.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(json.dumps(row["choice"], sort_keys=True), []).append(row["dev"])

    def merit(runs: Sequence[Mapping[str, float]]) -> tuple[float, float]:
        if not all(runs):
            return (-1.0, 0.0)
        accuracy = sum(run["accuracy"] for run in runs) / len(runs)
        return accuracy, -sum(run["log-loss"] for run in runs) / len(runs)

    best = max(found, key=lambda choice: merit(found[choice]))
    chosen: dict[str, Any] = json.loads(best)
    return chosen
