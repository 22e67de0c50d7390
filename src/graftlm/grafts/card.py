"""The model card of a graft: the YAML header that hubs read, and the facts of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_LICENSES = {"smollm2-135m": "apache-2.0", "efficientnet-lite0": "apache-2.0", "minilm-l6": "apache-2.0", "toy": "mit"}
_HUB_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "efficientnet-lite0": "timm/tf_efficientnet_lite0.in1k",
    "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
}
_STRICTNESS = ("cc0-1.0", "mit", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "other")


def card_text(name: str, description: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    """README.md of a graft. `header` adds to or replaces the keys of the YAML header."""
    parts = {role: part["name"] for role, part in description["frozen_parts"].items()}
    keys = {
        "library_name": "graftlm",
        "pipeline_tag": "image-to-text" if any("encoder" in role for role in parts) else "text-classification",
        "base_model": list(dict.fromkeys(_public_name(str(part)) for part in parts.values())),
        "base_model_relation": "adapter",
        "datasets": list(description["training"].get("datasets", [])),
        "license": most_restrictive([_LICENSES.get(str(part), "other") for part in parts.values()]),
        "metrics": [],
        **header,
    }
    head = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n# {name}\n\n{_body(description, parts)}\n"


def most_restrictive(licenses: list[str]) -> str:
    """The licence that binds the whole; an unknown one counts as "other", the strictest."""
    known = [name if name in _STRICTNESS else "other" for name in licenses] or ["other"]
    return max(known, key=_STRICTNESS.index)


def _public_name(part: str) -> str:
    """The hub id of a part; of a local path the last step, since a card names no place on a machine."""
    if part in _HUB_NAMES:
        return _HUB_NAMES[part]
    return Path(part).name if part.startswith((".", "/", "~")) else part


def _stages(training: Mapping[str, Any]) -> list[str]:
    """What each stage of a training took, the last one first."""
    own = f"{training.get('steps', 0)} steps ({training.get('seconds', 0) / 60:.1f} minutes)"
    return [own, *(_stages(training["start"]) if training.get("start") else [])]


def _body(description: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    training = description["training"]
    lines = [
        f"A graft for GraftLM: the system `{description['system']}` with {description['parameters']:,} trained "
        "parameters over frozen parts, which are fetched apart and checked by fingerprint.",
        "",
        "| frozen part | name | fingerprint |",
        "|---|---|---|",
    ]
    for role, part in description["frozen_parts"].items():
        lines.append(f"| {role} | {parts[role]} | `{part['fingerprint'][:16]}` |")
    if training.get("steps"):
        lines += ["", f"Trained for {', after '.join(_stages(training))}."]
    if training.get("loss") is not None:
        blind = training.get("blind_loss")
        beside = f", {blind:.3f} with black pictures" if blind is not None else ""
        lines += [f"Validation loss at the end: {training['loss']:.3f} nats{beside}."]
    lines += ["", "```python", "import graftlm", "", 'system = graftlm.load("FOLDER_OR_NAME")', "```"]
    return "\n".join(lines)
