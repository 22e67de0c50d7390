"""Tries a pair of frozen parts before anyone trains it: does it fit, what is trained, what will it cost.

Two training steps on coloured squares, one answer, and the hashes of the frozen parts before and after. A pair that
cannot work is refused with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from graftlm.errors import BackboneError, ConfigError, GraftError, UnsupportedLMError, UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from graftlm.data.sentence import Sentence
    from graftlm.systems.base import Parts, System, SystemConfig

_BATCH = 4
_COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
_ADAM_BYTES = 8  # two float32 moments per trained number


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What a dry run found.

    Attributes:
        parameters: per part, trained and frozen numbers
        sites: where media can enter this language model, with the reason where they cannot
        losses: before the first step, before the second and after it, in nats per token
        step_s: seconds of a training step on `batch` pictures, encoding included
        memory_bytes: weights, gradients, optimiser and activations of such a step
        graft_bytes: size of what is saved
    """

    lm: str
    encoder: str
    system: str
    parameters: dict[str, dict[str, int]]
    sites: dict[str, str]
    losses: tuple[float, float, float]
    batch: int
    step_s: float
    memory_bytes: int
    graft_bytes: int
    answer: str
    frozen_unchanged: bool

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{self.system}: {self.encoder} -> {self.lm}"
        rows = [f"  {name:<20}{row['trained']:>14,}{row['frozen']:>16,}" for name, row in self.parameters.items()]
        first, _, last = self.losses
        return "\n".join(
            [
                head,
                f"  {'part':<20}{'trained':>14}{'frozen':>16}",
                *rows,
                *(f"  media as {site:<11}{state}" for site, state in self.sites.items()),
                f"  loss                {first:.3f} -> {last:.3f} in two steps",
                f"  frozen parts        {'unchanged' if self.frozen_unchanged else 'CHANGED'}",
                f"  a step of {self.batch} takes   {self.step_s:.2f} s, {self.memory_bytes / 2**20:,.0f} MiB",
                f"  size of the graft   {self.graft_bytes / 2**20:.2f} MiB",
            ]
        )


def dry_run(
    lm: str = "smollm2-135m", encoder: str = "efficientnet-lite0", connector: str = "", system: str = ""
) -> DoctorReport:
    """Tries a pair by name. Raises: GraftError with the reason when it cannot work."""
    from graftlm.backbones import load_parts
    from graftlm.systems.base import SystemConfig, system_class

    name, options = choose_system(connector, system)
    cls = system_class(name)
    if not issubclass(cls.Config, SystemConfig):
        raise ConfigError(
            f"system '{name}': expected one with an encoder and a language model to pair, found another; name it"
        )
    config = cls.Config.model_validate({"lm": lm, "encoder": encoder, **options})
    return dry_run_parts(load_parts(config), cls, config)


def choose_system(connector: str, system: str) -> tuple[str, dict[str, Any]]:
    """The system that has a connector, and the options that choose it. Raises: UsageError when none does."""
    from graftlm.systems.base import system_class, system_names

    if system and system not in system_names():
        raise UsageError(unknown("system", system, system_names()))
    if not connector:
        return system or "clipcap", {}
    having = [
        (name, options)
        for name in ([system] if system else system_names())
        if (options := _options_for(system_class(name), connector)) is not None
    ]
    if having:
        return min(having, key=lambda found: len(found[1]))  # one that is built on it alone before one that may be
    where = f"system '{system}'" if system else "any system"
    raise UsageError(f"connector '{connector}' is not one of {where}; run `graft systems` to see what there is")


def _options_for(cls: type[System], connector: str) -> dict[str, Any] | None:
    """The config's choice of that name, or nothing where the system is built on that connector alone."""
    import sys

    for field, info in cls.Config.model_fields.items():
        if connector in get_args(info.annotation):
            return {field: connector}
    found = vars(sys.modules[cls.__module__]).values()
    is_built_on_it = any(getattr(item, "__module__", "") == f"graftlm.connectors.{connector}" for item in found)
    return {} if is_built_on_it else None


def dry_run_parts(parts: Parts, cls: type[System], config: SystemConfig) -> DoctorReport:
    """Tries parts that are already in memory. Raises: GraftError with the reason when they cannot work."""
    import torch

    from graftlm.lm.decode import Decoding
    from graftlm.train.guard import FrozenGuard

    if "image" not in parts.encoders:
        found = ", ".join(parts.encoders) or "nothing"
        raise BackboneError(f"encoder '{config.encoder}' reads {found}, expected image; choose a vision encoder")
    torch.manual_seed(0)
    with _refusing(config):
        sites = _sites(parts)
        system = cls.build(config, parts)
        guard = FrozenGuard.of(system)
        batch = _sentences()
        losses, step_s, activations = _two_steps(system, batch)
        answer = system.eval().respond([batch[0].prompt()], Decoding(max_tokens=4))[0].text()
        unchanged = _is_unchanged(guard, system)
    trained = sum(tensor.numel() for tensor in system.trainable_state().values())
    return DoctorReport(
        lm=config.lm,
        encoder=config.encoder,
        system=cls.name,
        parameters=_parameters(system),
        sites=sites,
        losses=losses,
        batch=_BATCH,
        step_s=step_s,
        memory_bytes=_bytes(system.parameters()) + trained * (4 + _ADAM_BYTES) + activations,
        graft_bytes=_bytes(system.trainable_state().values()),
        answer=answer,
        frozen_unchanged=unchanged,
    )


@contextmanager
def _refusing(config: SystemConfig) -> Iterator[None]:
    """A pair whose shapes or types do not meet is refused in a sentence, not in a traceback."""
    try:
        yield
    except GraftError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(f"'{config.encoder}' with '{config.lm}' cannot be trained: {reason}") from error


def _sites(parts: Parts) -> dict[str, str]:
    """Where media can enter. The probe of cross-attention runs one token through every layer's hook."""
    sites = {"embeddings": "yes"}
    try:
        parts.lm.attach_cross_attention({})
        sites["memory"] = "yes"
    except UnsupportedLMError as error:
        sites["memory"] = f"no: {error}"
    try:
        geometry = parts.lm.prefix_geometry
        sites["prefix"] = f"yes, {geometry.token_dim:,} numbers per position"
    except UnsupportedLMError as error:
        sites["prefix"] = f"no: {error}"
    return sites


def _sentences() -> list[Sentence]:
    from PIL import Image as Pictures

    from graftlm.data.sentence import Image, Sentence, Text

    pictures = {name: Pictures.new("RGB", (64, 64), colour) for name, colour in _COLOURS.items()}
    return [Sentence.of(Image(picture), Text(f"A {name} square.", target=True)) for name, picture in pictures.items()]


def _two_steps(system: System, batch: list[Sentence]) -> tuple[tuple[float, float, float], float, int]:
    """Losses, seconds of the second step, and bytes that the backward pass keeps."""
    import torch

    system.train()
    trained = dict(system.trainable())
    if not trained:
        raise ConfigError(f"system '{system.name}' trains nothing with this config; nothing would be learnt")
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    losses, seconds, kept = [], 0.0, 0
    for _ in range(2):
        start = time.perf_counter()
        with _counting_saved() as saved:
            loss = _loss(system, batch)
        kept = max(kept, sum(saved.values()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _check_gradients(trained)
        optimiser.step()
        losses.append(loss.item())
        seconds = time.perf_counter() - start
    with torch.no_grad():
        losses.append(_loss(system, batch).item())
    if not all(loss == loss and abs(loss) != float("inf") for loss in losses):
        raise BackboneError(f"the loss of system '{system.name}' is not finite ({losses}); try precision float32")
    return (losses[0], losses[1], losses[2]), seconds, kept


def _loss(system: System, batch: list[Sentence]) -> Tensor:
    import torch

    return torch.stack(list(system.losses(batch).values())).sum()


def _check_gradients(trained: Mapping[str, Any]) -> None:
    """Raises: BackboneError when no gradient arrives, or one that is not finite."""
    gradients = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    for name, gradient in gradients.items():
        if not bool(gradient.isfinite().all()):
            raise BackboneError(f"the gradient of '{name}' is not finite; try precision float32")
    if not any(bool(gradient.any()) for gradient in gradients.values()):
        raise BackboneError("no gradient comes back through the language model, so nothing can be learnt with it")


@contextmanager
def _counting_saved() -> Iterator[dict[int, int]]:
    """Bytes per storage that autograd keeps for the backward pass."""
    import torch

    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _parameters(system: System) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for name, parameter in system.named_parameters():
        steps = name.split(".")
        part = ".".join(steps[:2]) if steps[0] == "encoders" else steps[0]
        row = table.setdefault(part, {"trained": 0, "frozen": 0})
        row["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return table


def _is_unchanged(guard: Any, system: System) -> bool:
    from graftlm.errors import FrozenError

    try:
        guard.check(system)
    except FrozenError:
        return False
    return True


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
