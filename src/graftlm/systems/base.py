"""What a paper is: parts, how media enter, and what is minimised."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from graftlm.data.sentence import MediaPart, Sentence, Text
from graftlm.data.tokenize import Layout, TokenBatch, tokenize
from graftlm.encoders.base import Encoder, Features
from graftlm.errors import ConfigError, DataError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.decode import Decoding, decode
from graftlm.losses import causal_lm, shifted_targets, target_positions
from graftlm.nn.initialise import reinitialise


class Responder(Protocol):
    """All that the command line, the server and the evaluation see of a system."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        """One answer per sentence; what follows the first target of a sentence is ignored."""


class SystemConfig(BaseModel):
    """Fields every system has; a paper's config adds its own. Defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lm: str = Field("smollm2-135m", description="name, hub id or local path of the frozen language model")
    encoder: str = Field("efficientnet-lite0", description="name, hub id or local path of the encoder")
    precision: str = Field("bfloat16", description="of the frozen language model: float32, bfloat16, int8 or nf4")


@dataclass(frozen=True, slots=True)
class Parts:
    """The frozen parts a system is built over; encoders by modality."""

    lm: LanguageModel
    encoders: Mapping[str, Encoder] = field(default_factory=dict)

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality. Raises: ConfigError when there is none."""
        if modality not in self.encoders:
            found = ", ".join(self.encoders) or "none"
            raise ConfigError(f"system.encoder: expected one that reads {modality}, found {found}; choose another")
        return self.encoders[modality]


class System(nn.Module, ABC):
    """A published system: one file that wires parts.

    `trainable_state` is everything that is saved; all else is frozen and known by fingerprint.
    """

    name: ClassVar[str]
    Config: ClassVar[type[SystemConfig]]

    def __init__(self, config: SystemConfig, parts: Parts) -> None:
        super().__init__()
        self.config = config
        self.lm = parts.lm
        self.encoders = nn.ModuleDict(dict(parts.encoders))
        self.lm.requires_grad_(False)
        self.encoders.requires_grad_(False)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, parts: Parts) -> Self:
        """The only translator from a config to parts with plain arguments."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """How this system lays a sentence out in positions."""

    @abstractmethod
    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """What goes into the one call, padded on the right; labels mark the targets."""

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised."""
        inputs = self.inputs(sentences)
        assert inputs.labels is not None
        output = self.lm(inputs, at=target_positions(inputs.labels))
        return {"caption": causal_lm(output.logits, shifted_targets(inputs.labels))}

    @torch.no_grad()
    def respond(self, sentences: Sequence[Sentence], decoding: Decoding | None = None) -> list[Sentence]:
        """Answers the prompts of sentences, in their order; State is an argument, so threads may share a system."""
        if not sentences:
            return []
        inputs = self.inputs([sentence.prompt() for sentence in sentences])
        best = decode(self.lm, inputs, decoding or Decoding())
        return [Sentence((Text(row[0].text, role="assistant"),)) for row in best]

    def tokens(self, sentences: Sequence[Sentence]) -> TokenBatch:
        """Sentences in this system's layout, on the language model's device."""
        batch = tokenize(sentences, self.lm.tokenizer, self.layout)
        device = next(self.lm.parameters()).device
        moved = {name: getattr(batch, name).to(device) for name in ("ids", "labels", "mask", "slots", "seen", "rows")}
        return TokenBatch(**moved, media=batch.media)

    def perceive(self, media: Sequence[MediaPart]) -> Features:
        """Features of media of one modality; with gradient only where the encoder is trained.

        Raises: DataError when no encoder reads it.
        """
        modality = type(media[0]).__name__.lower()
        if modality not in self.encoders:
            raise DataError(f"{self.name}: expected one of {sorted(self.encoders)}, found a part of type {modality}")
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        device = next(self.parameters()).device
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            features: Features = encoder(encoder.preprocess(media).to(device))
            return features
        return encoder.encode(media).to(device)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters that are trained."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds: trained parameters by name."""
        return {name: parameter.detach() for name, parameter in self.trainable()}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every frozen part, by role ("lm", "encoders.image")."""
        found = {"lm": self.lm.fingerprint}
        for modality, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            found[f"encoders.{modality}"] = encoder.fingerprint
        return found

    def train(self, mode: bool = True) -> Self:
        """Training mode for the trained parts; frozen parts, and running statistics everywhere, stay as they are."""
        super().train(mode)
        for part in (self.lm, *self.encoders.values()):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()  # its statistics are no parameters: a checkpoint would not hold them
        return self

    @classmethod
    def from_pretrained(cls, source: str | Path) -> System:
        """A graft by ready-made name, folder, run or hub id. Raises: CheckpointError when it does not fit."""
        from graftlm.grafts import load

        return load(source)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes graft.json, graft.safetensors and the card, complete or not at all."""
        from graftlm.grafts import save

        save(self, Path(folder))


def set_training(
    part: LanguageModel | Encoder, training: str, seed: int, where: str, precision: str, lora_rank: int = 8
) -> None:
    """Applies a config's choice to a part: frozen, finetuned, scratch or lora.

    Raises: ConfigError when weights that are to be trained are not held in float32.
    """
    if training == "frozen":
        return
    if training == "lora":
        assert isinstance(part, LanguageModel)
        part.add_lora(lora_rank)
        return
    if precision != "float32":
        raise ConfigError(
            f"{where}: '{training}' trains the part's own weights, which bfloat16 would round away; "
            f"found system.precision '{precision}', set it to float32"
        )
    if training == "scratch":
        reinitialise(part, seed)
    part.requires_grad_(True)


def system_names() -> list[str]:
    """The systems that exist: one file each in this folder."""
    folder = Path(__file__).parent
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name != "base")


def system_class(name: str) -> type[System]:
    """The system of a name. Raises: ConfigError for an unknown one, with the nearest."""
    import difflib

    names = system_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown system '{name}'{hint} (there are: {', '.join(names)})")
    module = importlib.import_module(f"graftlm.systems.{name}")
    found = [item for item in vars(module).values() if isinstance(item, type) and getattr(item, "name", None) == name]
    return found[0]
