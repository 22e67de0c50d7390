"""A classification task as a sentence: a template with slots, and a word for every class.

A template is a YAML file (one for each dataset and template in `templates/`). Its text names slots in braces and has
one `{mask}`, where the word of the class stands (the cloze of Schick and Schütze, arXiv:2001.07676 §3). A slot
under `shorten` may lose tokens where a row would be too long; the rest of the sentence never does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from graftlm.data.sample import Sample
from graftlm.data.sentence import Filled, LabelWord, Part, Sentence, Text
from graftlm.errors import BadSampleError, ConfigError, DataError, unknown

TEMPLATES = Path(__file__).parent / "templates"
MASK = "mask"
_TABLE = "table"
_SLOT = re.compile(r"\{(\w*)\}")


class Table(BaseModel):
    """How the rows of a table fill a template; what is not said is taken by name.

    A column may be several names, of which the first that a row has counts; "" among them allows none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | list[str] = Field("label", description="column of the class")
    classes: dict[str, list[str | int | float | bool]] = Field(
        default_factory=dict, description="class -> what its column may hold beside its name; its number without"
    )
    columns: dict[str, str | list[str]] = Field(default_factory=dict, description="slot -> its column, by its own name")
    header: list[str] = Field(default_factory=list, description="names of the columns of a .csv without a first line")
    group: str = Field("", description="column of what rows share (a passage): never in training and dev at once")
    rows: Literal["plain", "multirc", "trec"] = Field("plain", description="plain, or another shape")


class Template(BaseModel):
    """One way to say a dataset's rows, and the words of its classes in the order of their numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", description="dataset/template; that of the file")
    source: str = Field("", description="where the wording comes from")
    text: str = Field(description="the sentence: {slot} for a column, {mask} for the word of the class")
    words: dict[str, list[str]] = Field(description="class -> its words, the first of which is learnt")
    shorten: list[str] = Field(default_factory=list, description="slots that may lose tokens")
    table: Table = Field(default_factory=lambda: Table.model_validate({}), description="where the rows come from")

    @field_validator("words", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """One word may stand without a list, and be one that YAML reads as true or a number."""
        if not isinstance(value, dict):
            return value
        listed = {key: each if isinstance(each, list) else [each] for key, each in value.items()}
        return {_plain(key): [_plain(word) for word in each] for key, each in listed.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by number."""
        return tuple(self.words)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots in reading order, the mask left out."""
        return tuple(dict.fromkeys(name for name in _SLOT.findall(self.text) if name != MASK))

    @property
    def is_causal(self) -> bool:
        """Whether no slot stands after the mask, where a language model that reads from left to right cannot look."""
        return not _SLOT.findall(self.text.partition("{mask}")[2])

    def choices(self) -> tuple[tuple[str, ...], ...]:
        """Every class's words as they stand in the sentence: with a space where the text has one before the mask."""
        space = " " if self.text.partition("{mask}")[0].endswith(" ") else ""
        return tuple(tuple(space + word for word in words) for words in self.words.values())

    def sentence(self, values: Mapping[str, str], label: int) -> Sentence:
        """The sentence of one row, the class's word its target.

        A space before a slot or the mask goes with what fills it, as tokenizers have it.
        """
        parts: list[Part] = []
        space = ""
        for place, piece in enumerate(_SLOT.split(self.text)):
            if place % 2 == 0:
                words = space + piece
                kept = words.rstrip(" ")
                space = words[len(kept) :]
                parts += [Text(kept)] if kept else []
            elif piece == MASK:
                parts.append(Text(LabelWord(label, self.choices()), target=True))
                space = ""
            else:
                parts.append(Text(Filled(space + values[piece], piece in self.shorten)))
                space = ""
        return Sentence(tuple(parts))

    def sample(self, row: LabelledRow) -> Sample:
        """One row as a sample."""
        metadata = {
            "label": row.label,
            "labels": self.classes,
            "words": self.choices(),
            "template": self.name,
            "group": row.group,
        }
        return Sample(self.sentence(row.values, row.label), row.key, (self.classes[row.label],), metadata)


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row as a template wants it: values by slot, the number of its class, and what it shares with other rows."""

    key: str
    values: Mapping[str, str]
    label: int
    group: str = ""


def load_template(name: str) -> Template:
    """A template by `dataset/template`, by dataset alone (its `default`), or by the path of a YAML file.

    Raises: ConfigError when there is none, or it cannot be used.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name), Path(name).stem, {})
    dataset, _, own = name.partition("/")
    if dataset not in dataset_names():
        hint = unknown("dataset", dataset, dataset_names())
        raise ConfigError(f"template '{name}': {hint}; for a table of your own give the path of a .yaml file")
    names = template_names(dataset)
    own = own or names[0]
    if own not in names:
        raise ConfigError(unknown(f"template of {dataset}", own, names))
    folder = TEMPLATES / dataset
    return _read(folder / f"{own}.yaml", f"{dataset}/{own}", {_TABLE: _load(folder / f"{_TABLE}.yaml")})


@cache
def dataset_names() -> tuple[str, ...]:
    """The datasets that templates are ready for: one folder each."""
    return tuple(sorted(folder.name for folder in TEMPLATES.iterdir() if (folder / f"{_TABLE}.yaml").is_file()))


@cache
def template_names(dataset: str) -> tuple[str, ...]:
    """The templates of a dataset, its `default` first."""
    found = (path.stem for path in (TEMPLATES / dataset).glob("*.yaml") if path.stem != _TABLE)
    return tuple(sorted(found, key=lambda name: (name != "default", name)))


def chosen(sentence: Sentence) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """The class of a sentence and every class's words. Raises: DataError for one of another task."""
    for part in sentence:
        if part.target and isinstance(part, Text) and isinstance(part.content, LabelWord):
            return part.content.label, part.content.words
    raise DataError("expected a sentence of a classification task, found one without a class; read it with a template")


def refilled(sentence: Sentence, words: str) -> Sentence:
    """The sentence with other words in every slot: nothing ("") or what says nothing ("N/A")."""

    def change(part: Part) -> Part:
        if not (isinstance(part, Text) and isinstance(part.content, Filled)):
            return part
        space = " " if part.content.startswith(" ") and words else ""
        return Text(Filled(space + words, part.content.shortens), part.target, part.role)

    return sentence.map(change)


def relabelled(sentence: Sentence, label: int) -> Sentence:
    """The sentence with another class as its target."""

    def change(part: Part) -> Part:
        if not (part.target and isinstance(part, Text) and isinstance(part.content, LabelWord)):
            return part
        return Text(LabelWord(label, part.content.words), True, part.role)

    return sentence.map(change)


def _plain(value: Any) -> Any:
    """YAML reads yes and no as true and false: as words they are meant as they are written."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a template") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}; mend the template") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); mend the template") from None


def _read(path: Path, name: str, more: Mapping[str, Any]) -> Template:
    tree = _load(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected 'text' and 'words', found {type(tree).__name__}; see docs/text_tasks.md")
    try:
        template = Template.model_validate({"name": name, **more, **tree})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        fields = ", ".join(Template.model_fields)
        raise ConfigError(f"{path}: {key}: {problem['msg']}; a template has: {fields}") from None
    _check(template, path)
    return template


def _check(template: Template, path: Path) -> None:
    """Raises: ConfigError for a template that says nothing, or the same of two classes."""
    if "" in template.slots or set(_SLOT.sub("", template.text)) & set("{}"):
        raise ConfigError(
            f"{path}: text: expected every brace to belong to a slot named in letters, digits and underscores, as "
            f"{{text}}, found {template.text!r}; give the column another name under 'columns'"
        )
    masks = _SLOT.findall(template.text).count(MASK)
    if masks != 1:
        raise ConfigError(f"{path}: text: expected one {{mask}}, found {masks}")
    if not template.slots:
        raise ConfigError(f"{path}: text: expected at least one {{slot}} beside the mask, found none")
    stray = sorted(set(template.shorten) - set(template.slots))
    if stray:
        raise ConfigError(f"{path}: shorten: {unknown('slot', stray[0], template.slots)}")
    if len(template.words) < 2 or not all(template.words.values()):
        raise ConfigError(f"{path}: words: expected at least two classes with a word each, found {template.words}")
    said = [word for words in template.words.values() for word in words]
    if len(set(said)) < len(said):
        twice = next(word for word in said if said.count(word) > 1)
        raise ConfigError(f"{path}: words: '{twice}' stands for two classes, which could not be told apart")
    named = template.table.classes
    if named and set(named) != set(template.words):
        raise ConfigError(f"{path}: words: expected the classes {', '.join(named)}, found {', '.join(template.words)}")


def row_of(template: Template, record: Mapping[str, Any], key: str) -> LabelledRow:
    """A row of a table as the template wants it. Raises: BadSampleError when a column or the class is missing."""
    table = template.table
    values = {slot: _text(_cell(record, table.columns.get(slot, slot), slot), slot) for slot in template.slots}
    label = label_of(template, _cell(record, table.label, "class"))
    return LabelledRow(key, values, label, str(record.get(table.group, "")) if table.group else "")


def label_of(template: Template, value: Any) -> int:
    """The number of the class that a cell names. Raises: BadSampleError when it names none."""
    named = template.table.classes
    known = [[*(named.get(name) or [number]), name] for number, name in enumerate(template.classes)]
    for accepts in (_same, _spelled):
        for number, values in enumerate(known):
            if any(accepts(value, one) for one in values):
                return number
    there = ", ".join(template.classes)
    raise BadSampleError("unknown-class", f"expected one of the classes {there}, found {value!r}; see 'classes'")


def _same(found: Any, known: Any) -> bool:
    return type(found) is type(known) and bool(found == known)


def _spelled(found: Any, known: Any) -> bool:
    return not isinstance(found, float) and str(found).strip().casefold() == str(known).casefold()


def _cell(record: Mapping[str, Any], columns: str | Sequence[str], what: str) -> Any:
    names = [columns] if isinstance(columns, str) else columns
    for name in names:
        if record.get(name) is not None:
            return record[name]
    if "" in names:
        return ""
    there = ", ".join(map(str, record)) or "none"
    raise BadSampleError("missing-column", f"expected a column for the {what} ({', '.join(names)}), found {there}")


def _text(value: Any, slot: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return " ".join(str(value).split())
    raise BadSampleError("wrong-type", f"{slot}: expected words, found {type(value).__name__}")
