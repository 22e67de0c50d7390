"""The rules of docs/architecture.md, each a function from source files to the lines that break it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.architecture.source import FunctionNode, Import, Source

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_SYSTEM = 400, 60, 8, 200

_BASES = {"data", "lm", "losses", "encoders.base", "connectors.base", "config", "errors", "nn"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "data": {"data", "errors", "config"},
    "nn": {"nn"},
    "losses": set(),
    "encoders": {"encoders", "nn", "data", "errors"},
    "connectors": {"connectors", "encoders.base", "nn", "data", "errors"},
    "feature_store": {"storage", "encoders.base", "nn", "data", "errors"},
    "features": {"feature_store", "storage", "encoders.base", "nn", "data", "errors"},
    "lm": {"lm", "nn", "data", "errors", "losses"},
    "systems.base": _BASES,
    "systems": {*_BASES, "systems.base", "connectors", "encoders"},
    "index": {"index", "storage", "data", "errors"},
    "storage": {"errors"},
    "papers": {"errors"},
    "demo": {"*"},
    "train": {
        "train",
        "storage",
        "systems.base",
        "encoders.base",
        "data",
        "losses",
        "features",
        "config",
        "errors",
        "lm.decode",
        "nn",
    },
    "chat": {
        "chat",
        "storage",
        "systems.base",
        "encoders.base",
        "features",
        "data",
        "errors",
        "lm.decode",
        "lm.extended",
        "lm.pictures",
    },
    "evaluate": {"evaluate", "systems.base", "data", "index", "errors", "lm.decode", "lm.verbalise"},
    "backbones": {"storage", "lm", "encoders", "systems.base", "data", "errors"},
    "grafts": {"grafts", "storage", "systems.base", "backbones", "errors"},
    "doctor": {"errors"},
    "cli": {"cli.main", "errors"},
    "serve": {"serve", "errors"},
    "__init__": set(),
    "__main__": {"cli.main"},
}
"""What a folder or module of graftlm may import of graftlm when it is loaded; the longest name that fits counts."""

EVERYTHING = {"*"}
MAY_IMPORT_LAZILY: dict[str, set[str]] = {
    "cli": EVERYTHING,
    "serve": EVERYTHING,
    "doctor": EVERYTHING,
    "__init__": EVERYTHING,
    "systems.base": {"grafts"},
    "features": {"backbones"},
    "encoders": {"backbones"},
    "lm": {"backbones"},
    "train": {"backbones", "grafts", "evaluate"},
    "grafts": {"config"},
}
"""What it may import besides, inside functions."""

FRONT_ENDS = ("cli", "serve", "demo", "__main__")
ONLY_IN: dict[str, set[str]] = {
    "transformers": {"lm/huggingface.py", "lm/masked.py", "encoders/huggingface.py", "encoders/minilm.py"},
}
TORCH_IN_DATA = {"data.tokenize", "data.media"}
ONLY_THIRD_PARTY: dict[str, set[str]] = {
    "errors": set(),
    "config": {"pydantic", "yaml", "pydantic_core"},
    "nn": {"torch"},
    "losses": {"torch"},
    "__init__": set(),
}
LIGHT = {"typer"}
"""What a verb's file may import when it is loaded: `graft --help` has half a second."""

DISTRIBUTION = {"yaml": "pyyaml", "PIL": "pillow", "faiss": "faiss-cpu", "pydantic_core": "pydantic"}
_MODULES = {"errors", "config", "losses", "storage", "papers", "feature_store", "features", "backbones", "doctor"}
PACKAGES = {name.partition(".")[0] for name in MAY_IMPORT} - {*_MODULES, "__init__", "__main__"}
"""Folders, of which an import may take modules."""

HOMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FREE_BASES = {"BaseModel", "Exception", "GraftError"}


def _lookup(table: Mapping[str, set[str]], module: str) -> set[str] | None:
    while module:
        if module in table:
            return table[module]
        module = module.rpartition(".")[0]
    return None


def _inside(module: str, allowed: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") or name == "*" for name in allowed)


def _targets(imported: Import) -> list[str]:
    """Modules of graftlm that an import reaches: `from graftlm.lm import decode` reaches lm.decode."""
    if imported.module == "graftlm":
        return list(imported.names) or ["__init__"]
    name = imported.module.removeprefix("graftlm.")
    if name not in PACKAGES:
        return [name]
    return [f"{name}.{inner}" for inner in imported.names] or [name]


def imports_follow_the_table(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        if not file.module:
            continue
        allowed = _lookup(MAY_IMPORT, file.module)
        if allowed is None:
            yield f"{file.path}:1: '{file.module}' is not in the table of who may import whom"
            continue
        lazily = allowed | (_lookup(MAY_IMPORT_LAZILY, file.module) or set())
        for imported in file.imports:
            if imported.level:
                yield f"{file.path}:{imported.line}: relative import; write the full name"
            elif imported.top == "graftlm":
                for target in _targets(imported):
                    if target.startswith(("__version__", "READY_MADE")) and imported.lazy:
                        continue
                    if not _inside(target, lazily if imported.lazy else allowed):
                        when = "" if imported.lazy else " when it is loaded"
                        yield f"{file.path}:{imported.line}: {file.module} may not import graftlm.{target}{when}"


def systems_never_import_each_other(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        if file.module.startswith("systems.") and file.module != "systems.base":
            for imported in file.imports:
                inner = imported.module.removeprefix("graftlm.")
                if inner == "systems" or (inner.startswith("systems.") and inner != "systems.base"):
                    yield f"{file.path}:{imported.line}: a system imports another one; move the shared piece to a part"


def nothing_imports_the_front_ends(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        if not file.module or file.module.partition(".")[0] in FRONT_ENDS:
            continue
        for imported in file.imports:
            if any(_inside(target, FRONT_ENDS) for target in _targets(imported) if imported.top == "graftlm"):
                yield f"{file.path}:{imported.line}: nothing imports cli, serve or demo"


def third_parties_stay_in_their_place(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        if not file.module:
            continue
        for imported in file.imports:
            top = imported.top
            if top == "graftlm" or top in sys.stdlib_module_names or imported.level:
                continue
            where = f"{file.path}:{imported.line}"
            if top in ONLY_IN and file.path.removeprefix("src/graftlm/") not in ONLY_IN[top]:
                yield f"{where}: {top} is imported only in {', '.join(sorted(ONLY_IN[top]))}"
            if file.module.startswith("data.") and top == "torch" and file.module not in TORCH_IN_DATA:
                yield f"{where}: data imports torch only in tokenize.py and media.py"
            free = _lookup(ONLY_THIRD_PARTY, file.module)
            if free is not None and top not in free:
                yield f"{where}: {file.module} imports nothing but {', '.join(sorted(free)) or 'the standard library'}"
            if file.module.startswith("cli.") and not imported.lazy and top not in LIGHT:
                yield f"{where}: a verb imports {top} inside its functions, so that `graft --help` stays quick"


def third_parties_are_declared(files: Sequence[Source], pyproject: str) -> Iterator[str]:
    project = tomllib.loads(pyproject)["project"]
    core = {_distribution(line) for line in project["dependencies"]}
    extras = {_distribution(line) for lines in project["optional-dependencies"].values() for line in lines}
    for file in files:
        for imported in file.imports if file.module else ():
            where = f"{file.path}:{imported.line}"
            name = DISTRIBUTION.get(imported.top, imported.top).lower().replace("_", "-")
            if imported.level or imported.top == "graftlm" or imported.top in sys.stdlib_module_names or name in core:
                continue
            if name not in extras:
                yield f"{where}: {imported.top} is not among the dependencies of pyproject.toml"
            elif not imported.lazy:
                yield f"{where}: {imported.top} is an extra; import it inside the function that needs it"


def _distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def names_have_a_home(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        for part in Path(path).parts:
            if part.partition(".")[0].lower() in HOMELESS:
                yield f"{path}:1: no {part}: a function that has no home has no name yet"


def sizes(files: Sequence[Source]) -> Iterator[tuple[str, str, str]]:
    """(key of the exception, place, rule) of everything that is too large."""
    for file in files:
        limit = MAX_SYSTEM if re.fullmatch(r"systems\.(?!base$)\w+", file.module) else MAX_FILE
        if file.size() > limit:
            yield file.path, f"{file.path}:1", f"{file.size()} lines of code, at most {limit}"
        if file.path.startswith("tests/"):
            continue
        for node in file.functions():
            key, place = f"{file.path}::{node.name}", f"{file.path}:{node.lineno}"
            if file.size(node) > MAX_FUNCTION:
                yield key, place, f"{node.name} has {file.size(node)} lines of code, at most {MAX_FUNCTION}"
            if _num_parameters(node) > MAX_PARAMETERS:
                yield key, place, f"{node.name} has {_num_parameters(node)} parameters, at most {MAX_PARAMETERS}"


def _num_parameters(node: FunctionNode) -> int:
    """Parameters without self; an option of the command line is a setting, not a parameter."""
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    names = [a.arg for a in arguments if a.annotation is None or "typer." not in ast.unparse(a.annotation)]
    return len(names) - (bool(names) and names[0] in ("self", "cls"))


def sizes_are_kept(files: Sequence[Source], exceptions: Mapping[str, str]) -> Iterator[str]:
    found = list(sizes(files))
    for key, place, rule in found:
        if key not in exceptions:
            yield f"{place}: {rule}; split it, or give the reason in tests/size_exceptions.toml under '{key}'"
    for key in sorted(set(exceptions) - {key for key, _, _ in found}):
        yield f"tests/size_exceptions.toml:1: '{key}' is within the limits or gone; remove its exception"
    for key, reason in exceptions.items():
        if len(reason.split()) < 3:
            yield f"tests/size_exceptions.toml:1: '{key}' needs a reason in words"


def classes_are_abstract_or_final(files: Sequence[Source]) -> Iterator[str]:
    own = {file.module: file for file in files if file.module}
    for file in own.values():
        for node in file.classes():
            for base in node.bases:
                found = _class_of(base, file, own)
                if found and not _is_abstract(found[0]) and not _is_free(*found, own):
                    name = ast.unparse(base)
                    yield f"{file.path}:{node.lineno}: {node.name} subclasses the concrete class {name}"


def _class_of(name: ast.expr, file: Source, own: Mapping[str, Source]) -> tuple[ast.ClassDef, Source] | None:
    """The class of graftlm that a base stands for, and its file; None for what comes from elsewhere."""
    name = name.value if isinstance(name, ast.Subscript) else name
    if not isinstance(name, ast.Name):
        return None
    places = [file, *(own[i.module[8:]] for i in file.imports if name.id in i.names and i.module[8:] in own)]
    return next(((node, place) for place in places for node in place.classes() if node.name == name.id), None)


def _base_name(node: ast.expr) -> str:
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_abstract(node: ast.ClassDef) -> bool:
    marks = (_base_name(d) for f in node.body if isinstance(f, FunctionNode) for d in f.decorator_list)
    return bool({"ABC", "Protocol"} & set(map(_base_name, node.bases))) or "abstractmethod" in marks


def _is_free(node: ast.ClassDef, file: Source, own: Mapping[str, Source]) -> bool:
    """Configs and errors form trees of concrete classes."""
    for base in node.bases:
        found = _class_of(base, file, own)
        if _base_name(base) in FREE_BASES or (found and found[0] is not node and _is_free(*found, own)):
            return True
    return node.name in FREE_BASES


def forward_has_no_mode(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        for node in file.functions():
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if node.name in ("forward", "__call__") and any(a.arg == "mode" for a in arguments):
                yield f"{file.path}:{node.lineno}: {node.name} takes a mode; write one function per behaviour"


def no_pickle(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        for imported in file.imports:
            if imported.top in PICKLES and file.module:
                yield f"{file.path}:{imported.line}: {imported.top} runs code when it reads; use safetensors or JSON"
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and file.module:
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                if not safe:
                    yield f"{file.path}:{node.lineno}: torch.load without weights_only=True"


def no_bare_except(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield f"{file.path}:{node.lineno}: bare except; name what is expected"


def everything_public_has_a_docstring(files: Sequence[Source]) -> Iterator[str]:
    for file in files:
        if not file.module:
            continue
        if file.text.strip() and not ast.get_docstring(file.tree):
            yield f"{file.path}:1: the module has no docstring"
        owners: list[ast.Module | ast.ClassDef] = [file.tree, *file.classes()]
        for owner in owners:
            for node in owner.body:
                if isinstance(node, FunctionNode | ast.ClassDef) and _wants_docstring(node, owner):
                    yield f"{file.path}:{node.lineno}: {node.name} has no docstring"


def _wants_docstring(node: FunctionNode | ast.ClassDef, owner: ast.Module | ast.ClassDef) -> bool:
    hidden = node.name.startswith("_") or (isinstance(owner, ast.ClassDef) and owner.name.startswith("_"))
    overload = any(_base_name(mark) in ("overload", "setter") for mark in node.decorator_list)
    return not hidden and not overload and not ast.get_docstring(node)


_MACHINE = re.compile(r"(?<![\w.~-])/(root|home|work|Users)/\w|file:///\w|/opt/\w")
_REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|--(extra-)?index-url|download\.pytorch\.org")


def no_machine_is_named(texts: Mapping[str, str]) -> Iterator[str]:
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if _MACHINE.search(line):
                yield f"{path}:{number}: a path of one machine: {line.strip()[:80]}"
            if _REGISTRY.search(line):
                yield f"{path}:{number}: a registry's address: {line.strip()[:80]}"
