"""Strict recipes: one YAML file with the tables ``system data train evaluate run``.

An unknown key, a wrong type, a value out of range, a key given twice or broken YAML is a `ConfigError` of one
sentence that names the place. The system table is checked against the system's own config, which the caller
hands in as `SystemFields`, so that this module needs no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from graftlm.errors import ConfigError

SystemFields: TypeAlias = Callable[[str], type[BaseModel]]
"""From a system's name to its config class; raises ConfigError for an unknown name."""

_LARGEST_RECIPE_BYTES = 1_000_000


def _aka(*names: str) -> dict[str, Any]:
    """What other tools call a field, so that a wrong key is answered with the right one."""
    return {"aka": list(names)}


class Table(BaseModel):
    """One table of a recipe: closed, immutable, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SystemTable(BaseModel):
    """Which published system, and its own fields (`graft systems NAME` lists them)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(description="a system: one file in graftlm/systems")
    start: str | None = Field(None, description="graft or run whose weights this stage begins with; null: fresh ones")
    only: list[str] = Field(
        default_factory=list, description="patterns of the tensors that are trained, as lm.tokens.*; empty: all"
    )

    def options(self) -> dict[str, Any]:
        """The system's own fields as given."""
        return dict(self.model_extra or {})


class DataTable(Table):
    """Where sentences come from."""

    train: dict[str, Any] = Field(description="reader and its arguments for the training sentences")
    also: list[dict[str, Any]] = Field(
        default_factory=list,
        description="more training data, each with the `factor` of its losses; a step takes a batch of every one",
    )
    val: dict[str, Any] | None = Field(None, description="reader and its arguments for validation; null: none")
    blind: bool = Field(False, description="every picture is replaced by a black one (Frozen's train-blind control)")
    cache_features: bool = Field(True, description="encode each medium once and keep its features on disk")
    bucket_batches: int = Field(
        64, ge=1, description="batches shuffled, then sorted by length, together; 1: no sorting"
    )
    drop_last: bool = Field(True, description="leave out the last, smaller batch of an epoch")
    bad_budget: float = Field(0.01, ge=0, le=1, description="fraction of unusable rows that stops the run")


class TrainTable(Table):
    """The optimisation. The run ends at the first of epochs, max_steps and max_minutes that is set."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate", json_schema_extra=_aka("learning_rate"))
    batch_size: int = Field(
        16, ge=1, description="sentences per forward pass and process", json_schema_extra=_aka("per_device_batch_size")
    )
    accumulate: int = Field(
        1, ge=1, description="forward passes per step", json_schema_extra=_aka("gradient_accumulation_steps")
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the data", json_schema_extra=_aka("num_train_epochs")
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="optimiser steps; alone it makes a run exactly repeatable",
        json_schema_extra=_aka("total_steps"),
    )
    max_minutes: float | None = Field(
        None, gt=0, description="wall time of the loop, earlier sessions included; the rate follows it"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up", json_schema_extra=_aka("warmup"))
    final_lr_fraction: float = Field(
        0.0, ge=0, le=1, description="of lr, where the cosine ends; 1: constant", json_schema_extra=_aka("min_lr")
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on matrices only")
    beta2: float = Field(
        0.999, gt=0, lt=1, description="AdamW's second-moment decay", json_schema_extra=_aka("adam_beta2")
    )
    clip_norm: float = Field(
        1.0, ge=0, description="largest gradient norm; 0: no clipping", json_schema_extra=_aka("clip", "max_grad_norm")
    )
    loss_weights: dict[str, float] = Field(
        default_factory=dict, description="factor of each loss by name; unnamed ones count 1"
    )
    seed: int = Field(0, ge=0, le=2**62, description="of weights, order and dropout")
    eval_every: int = Field(200, ge=0, description="steps between validations; 0: only at the end")
    save_every: int = Field(200, ge=0, description="steps between checkpoints; 0: only at the end")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.epochs is None and self.max_steps is None and self.max_minutes is None:
            raise ValueError("expected one of epochs, max_steps and max_minutes, found none; set one")
        return self


class EvaluateTable(Table):
    """Validation during training."""

    limit: int = Field(512, ge=0, description="validation sentences, evenly spread; 0: all")
    best_metric: str = Field(
        "loss", description="what picks the exported weights: 'loss', one loss's name (the lowest), or 'last'"
    )
    patience: int = Field(0, ge=0, description="validations without improvement that end the run; 0: never")
    blind: bool = Field(True, description="also log the loss with every picture black")
    sample_every: int = Field(200, ge=0, description="steps between sample answers; 0: none")
    num_samples: int = Field(8, ge=1, description="answers written each time")
    max_tokens: int = Field(32, ge=1, description="longest sample answer, in tokens")
    num_beams: int = Field(1, ge=1, description="beams of a sample answer")

    @model_validator(mode="after")
    def _waits_for_a_best(self) -> Self:
        if self.patience and self.best_metric == "last":
            raise ValueError("patience: expected 0 where best_metric is 'last': every validation is the best then")
        return self


class RunTable(Table):
    """Where results go and what the machine may use."""

    folder: str | None = Field(None, description="run folder; null: runs/<name of the recipe>")
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = Field(
        "none", description="tracker beside metrics.jsonl: none, tensorboard, wandb, trackio or mlflow"
    )
    workers: int = Field(
        2, ge=0, le=256, description="threads that prepare media", json_schema_extra=_aka("num_workers")
    )
    threads: int = Field(0, ge=0, le=1024, description="torch threads; 0: torch's own choice")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept beside the best one")
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.jsonl")
    graft_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="storage of the exported graft: float32, float16 or bfloat16"
    )


class Recipe(Table):
    """A whole run."""

    system: SystemTable
    data: DataTable
    train: TrainTable
    evaluate: EvaluateTable = Field(default_factory=lambda: EvaluateTable.model_validate({}))
    run: RunTable = Field(default_factory=lambda: RunTable.model_validate({}))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain tables with every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self, *, described: bool = False) -> str:
        """The recipe as YAML; `described` puts each field's meaning behind it."""
        lines: list[str] = []
        for table, values in self.to_dict().items():
            fields = type(getattr(self, table)).model_fields if described else {}
            lines.append(f"{table}:")
            for key, value in values.items():
                text = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
                rows = text.rstrip().split("\n")
                if key in fields:
                    rows[0] = f"{rows[0]}  # {fields[key].description}"
                lines.extend(f"  {row}" for row in rows)
        return "\n".join(lines) + "\n"


def load_recipe(
    path: str | Path, overrides: Iterable[str] = (), *, system_fields: SystemFields | None = None
) -> Recipe:
    """A recipe file with ``table.key=value`` overrides; values are read as YAML.

    Raises: ConfigError, one sentence with the place.
    """
    path = Path(path)
    tree = read_tree(path)
    changed = {apply_override(tree, override) for override in overrides}
    return parse_recipe(tree, where=str(path), changed=changed, system_fields=system_fields)


def parse_recipe(
    tree: Mapping[str, Any],
    *,
    where: str = "recipe",
    changed: Iterable[str] = (),
    system_fields: SystemFields | None = None,
) -> Recipe:
    """A recipe from plain tables. `changed`: dotted keys that came from the command line."""
    tree = dict(tree)
    for table in ("evaluate", "run"):  # every field has a default, and an empty table reads as null
        if tree.get(table, {}) is None:
            tree[table] = {}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(complaint(error, Recipe, where, (), set(changed))) from None
    if system_fields is None:
        return recipe
    return _with_system_defaults(recipe, where, set(changed), system_fields)


def apply_override(tree: dict[str, Any], override: str) -> str:
    """Puts ``a.b=c`` into plain tables and returns the dotted key. Raises: ConfigError."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {override}: expected table.key=value, for example --set train.lr=3e-4")
    place: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: '{'.'.join(keys[: depth + 1])}' is a value, not a table")
    place[keys[-1]] = _parse(text, f"--set {dotted}")
    return ".".join(keys)


def differing_keys(left: Mapping[str, Any], right: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Dotted keys at which two plain trees differ."""
    found: list[str] = []
    for key in sorted({*left, *right}):
        one, two = left.get(key), right.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differing_keys(one, two, prefix=f"{prefix}{key}.")
        elif one != two:
            found.append(f"{prefix}{key}")
    return found


def _with_system_defaults(recipe: Recipe, where: str, changed: set[str], fields: SystemFields) -> Recipe:
    try:
        model = fields(recipe.system.name)
    except ConfigError as error:
        raise ConfigError(f"{where}: system.name: {error}") from None
    try:
        config = model.model_validate(recipe.system.options())
    except ValidationError as error:
        raise ConfigError(complaint(error, model, where, ("system",), changed)) from None
    own = {"name": recipe.system.name, "start": recipe.system.start, "only": recipe.system.only}
    described = SystemTable.model_validate({**own, **config.model_dump(mode="json")})
    return recipe.model_copy(update={"system": described})


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Safe YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_tree(path: Path) -> dict[str, Any]:
    """The plain tables of a YAML file of at most 1 MB. Raises: ConfigError."""
    try:
        if path.stat().st_size > _LARGEST_RECIPE_BYTES:
            raise ConfigError(f"{path}: expected a recipe of at most 1 MB, found {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected a YAML file in UTF-8, found other bytes") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected the tables {', '.join(Recipe.model_fields)}, found {_describe(tree)}")
    return tree


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {type(error).__name__}") from None


def complaint(
    error: ValidationError, model: type[BaseModel], where: str, prefix: tuple[str, ...], changed: set[str]
) -> str:
    """The first complaint of a validation as one sentence that names the place."""
    problem = error.errors(include_url=False)[0]
    place = (*prefix, *(str(step) for step in problem["loc"]))
    dotted = ".".join(place)
    if dotted in changed:
        where = "--set"
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{where}: unknown key '{dotted}'{_suggest(place, model, prefix)}"
    if kind == "missing":
        return f"{where}: '{dotted}' is missing; {_meaning(place, model, prefix)}"
    if kind == "value_error":
        return f"{where}: {dotted}{': ' if dotted else ''}{context.get('error', problem['msg'])}"
    wanted = _WANTED.get(kind) or _RANGES.get(kind, "").format(**context)
    if not wanted:
        wanted = problem["msg"].removeprefix("Input should be ").rstrip(".")
    return f"{where}: {dotted}: expected {wanted}, found {_describe(problem['input'])}"


_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
}
_RANGES = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
}


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _table_of(place: Sequence[str], model: type[BaseModel], prefix: tuple[str, ...]) -> type[BaseModel] | None:
    """The model that holds the last step of `place`; None inside a free mapping."""
    found: type[BaseModel] = model
    for step in place[len(prefix) : -1]:
        field = found.model_fields.get(step)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return None
        found = field.annotation
    return found


def _names(model: type[BaseModel]) -> dict[str, str]:
    """Every name a field is known by, to the field."""
    names = {name: name for name in model.model_fields}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        other = extra.get("aka", []) if isinstance(extra, dict) else []
        names.update((str(known), name) for known in (other if isinstance(other, list) else []))
    return names


def _suggest(place: Sequence[str], model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    """The nearest key of the same table, else of another table, else all keys of this one."""
    key, table = place[-1], _table_of(place, model, prefix)
    if table is None:
        return ""
    tables = {"".join(f"{step}." for step in place[:-1]): table}
    if model is Recipe:
        for name, field in Recipe.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                tables.setdefault(f"{name}.", field.annotation)
    for dotted, candidate in tables.items():
        names = _names(candidate)
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.6 if candidate is table else 0.85)
        if near:
            return f"; did you mean '{dotted}{names[near[0]]}'?"
    return f"; there are: {', '.join(table.model_fields)}"


def _meaning(place: Sequence[str], model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    table = _table_of(place, model, prefix)
    field = table.model_fields.get(place[-1]) if table else None
    if field is not None and field.description:
        return f"it is {field.description}"
    return "a recipe has the tables " + ", ".join(Recipe.model_fields)
