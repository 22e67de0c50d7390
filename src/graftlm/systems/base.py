"""What a paper is: parts, how media enter, and what is minimised."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from graftlm.data.media import content_hash
from graftlm.data.sentence import MediaPart, Sentence, State, Text
from graftlm.data.tokenize import IGNORED, Layout, TokenBatch, tokenize, tokenize_row
from graftlm.encoders.base import Encoder, Features
from graftlm.errors import ConfigError, DataError, UsageError, unknown
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.cloze import cloze_logits, target_loss
from graftlm.lm.decode import Decoding, decode
from graftlm.lm.opening import Opening
from graftlm.lm.reading import Reading
from graftlm.lm.readout import HeadName, LossName, PooledHead, asked, pooled_head, pooled_loss, verbaliser_loss
from graftlm.lm.scoring import score_candidates
from graftlm.lm.verbalise import Pooling, Verbaliser
from graftlm.nn.initialise import reinitialise

T = TypeVar("T")
_TENSORS = ("ids", "labels", "mask", "slots", "seen", "rows", "retrieval")
_LEAST_ROOM = 8


class Responder(Protocol):
    """All that the command line, the server and the evaluation see of a system."""

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        """One answer per sentence; what follows the first target of a sentence is ignored."""


def answers_with_pictures(responder: object) -> bool:
    """Whether its `respond` takes a gallery to answer from."""
    return "gallery" in inspect.signature(getattr(responder, "respond", len)).parameters


@runtime_checkable
class Retriever(Protocol):
    """All that the index, the evaluation and the chat see of a system that finds pictures.

    Attributes:
        shared_dim: q, width of the space in which pictures and queries meet; a score is a plain dot product
    """

    shared_dim: int

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        """Unit vectors of pictures: (N, q) float32 on the CPU, without gradient, for any N."""

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        """Unit vectors of what is sought: (B, q) float32 on the CPU; a closing `Image` target may be left out."""

    def retrieval_fingerprint(self) -> str:
        """Hex digest that changes when the vectors of `embed_media` would."""


@runtime_checkable
class Classifier(Protocol):
    """All that an evaluation of classes sees of a system."""

    def class_scores(
        self,
        sentences: Sequence[Sentence],
        words: Sequence[Sequence[str]],
        *,
        pooling: Pooling = "first",
        references: Sequence[Sentence] = (),
    ) -> Tensor:
        """As `System.class_scores`."""


@runtime_checkable
class Likelihood(Protocol):
    """All that an evaluation by likelihood sees of a system."""

    def log_likelihoods(
        self, prompt: Sentence, candidates: Sequence[str], *, released: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `System.log_likelihoods`."""


@runtime_checkable
class Opener(Protocol):
    """All that an evaluation of prompts that begin alike sees of a system."""

    def opening(self, sentence: Sentence) -> Opening:
        """As `System.opening`."""

    def respond_after(
        self, opening: Opening, sentences: Sequence[Sentence], decoding: Decoding | None = None
    ) -> list[Sentence]:
        """As `System.respond_after`."""


@runtime_checkable
class Attentive(Protocol):
    """All that a report sees of a system that tells which media its words read."""

    def reading(self, sentences: Sequence[Sentence]) -> list[Reading]:
        """One reading per sentence. Raises: DataError for a sentence without media."""


class PartsConfig(BaseModel):
    """What every config is: closed and unchanging. A field `encoder` or `<kind>_encoder` names an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextConfig(PartsConfig):
    """Fields every system with a language model has; a paper's config adds its own. Defaults are the paper's."""

    lm: str = Field("smollm2-135m", description="name, hub id or local path of the frozen language model")
    precision: str = Field("bfloat16", description="of the frozen language model: float32, bfloat16, int8 or nf4")


class SystemConfig(TextConfig):
    """The same for systems that read pictures too."""

    encoder: str = Field("efficientnet-lite0", description="name, hub id or local path of the encoder")


class PromptConfig(TextConfig):
    """Fields of every trained method that classifies texts: how long they are, and how a class is read."""

    max_length: int = Field(384, ge=16, description="longest row in positions, the prompt included (IPT §4: 384)")
    loss: LossName = Field("vocabulary", description="label word against all words, or against label words: verbaliser")
    head: HeadName = Field("cloze", description="cloze: the label word; pooled: a linear head, for LMs without a cloze")
    num_classes: int = Field(0, ge=0, description="classes of a pooled head; 0 for a cloze")


@dataclass(frozen=True, slots=True)
class Parts:
    """The frozen parts a system is built over; encoders by modality. `language_model`: None where it needs none."""

    language_model: LanguageModel | None
    encoders: Mapping[str, Encoder] = field(default_factory=dict)

    @property
    def lm(self) -> LanguageModel:
        """The language model. Raises: ConfigError when there is none."""
        if self.language_model is None:
            raise ConfigError("system.lm: expected a language model, found none; name one, for example smollm2-135m")
        return self.language_model

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality. Raises: ConfigError when there is none."""
        if modality not in self.encoders:
            found = ", ".join(self.encoders) or "none"
            raise ConfigError(f"system.encoder: expected one that reads {modality}, found {found}; choose another")
        return self.encoders[modality]


class System(nn.Module, ABC):
    """A published system: one file that wires parts.

    `trainable_state` is everything that is saved; all else is frozen and known by fingerprint.

    Attributes:
        held: names of saved parameters that a stage of training leaves as they are; see `train_only`
        begun: whether this stage begins with the weights of an earlier one, in place of what a paper begins with
    """

    name: ClassVar[str]
    Config: ClassVar[type[PartsConfig]]
    lm: LanguageModel

    def __init__(self, config: PartsConfig, parts: Parts) -> None:
        super().__init__()
        self.config = config
        self.held: frozenset[str] = frozenset()
        self.begun = False
        if parts.language_model is not None:
            self.lm = parts.language_model.requires_grad_(False)
        self.encoders = nn.ModuleDict(dict(parts.encoders)).requires_grad_(False)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, parts: Parts) -> Self:
        """The only translator from a config to parts with plain arguments."""

    @property
    def has_lm(self) -> bool:
        """Whether it can write: one without a language model has its own `losses` and `length`, and no layout."""
        return "lm" in self._modules

    @property
    def writes(self) -> bool:
        """Whether it answers in words: one that only tells classes apart, or looks both ways, does not."""
        return self.has_lm and self.lm.is_causal

    @property
    def layout(self) -> Layout:
        """How this system lays a sentence out in positions. Raises: UsageError without a language model."""
        raise self._cannot_write()

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """What goes into the one call, padded on the right; labels mark the targets.

        Raises: UsageError without a language model.
        """
        raise self._cannot_write()

    def length(self, sentence: Sentence) -> tuple[int, int]:
        """Positions of a sentence and targets among them; sentences of like length are batched together."""
        row = tokenize_row(sentence, self.lm.tokenizer, self._within_context(self.layout))
        return len(row.ids), sum(label != IGNORED for label in row.labels)

    def perceived(self, sentence: Sentence) -> tuple[MediaPart | Text, ...]:
        """The parts its encoders are asked for: what is worth computing once."""
        return sentence.media()

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised."""
        return {"caption": self.target_loss(self.inputs(sentences))}

    def target_loss(self, inputs: LMInputs) -> Tensor:
        """Mean cross-entropy of the labels, as `lm.cloze.target_loss`."""
        return target_loss(self.lm, inputs)

    @torch.no_grad()
    def respond(self, sentences: Sequence[Sentence], decoding: Decoding | None = None) -> list[Sentence]:
        """Answers the prompts of sentences, in their order; State is an argument, so threads may share a system.

        Raises: UsageError without a language model.
        """
        return self._write([sentence.prompt() for sentence in sentences], decoding, None)

    @torch.no_grad()
    def opening(self, sentence: Sentence) -> Opening:
        """Reads what many prompts begin with, the worked examples of a few-shot prompt say, once for all of them.

        Raises: UsageError without a language model; ShapeError when it does not fit.
        """
        inputs = self.inputs([sentence])  # it refuses where there is no language model
        return Opening.of(self.lm, inputs, sentence)

    @torch.no_grad()
    def respond_after(
        self, opening: Opening, sentences: Sequence[Sentence], decoding: Decoding | None = None
    ) -> list[Sentence]:
        """What `respond` answers to the opening's sentence with each of the sentences behind it; less is computed."""
        return self._write([opening.sentence + sentence.prompt() for sentence in sentences], decoding, opening)

    def _write(self, prompts: Sequence[Sentence], decoding: Decoding | None, opening: Opening | None) -> list[Sentence]:
        if not self.has_lm:
            raise self._cannot_write()
        if not self.writes:
            raise UsageError(
                f"{self.name}: expected a system that writes, found one that tells classes apart; ask it with "
                "`graft evaluate GRAFT classification`"
            )
        if not prompts:
            return []
        inputs = self.inputs(prompts)
        inputs = inputs if opening is None else opening.skip(inputs)
        best = decode(self.lm, inputs, self.decoding(decoding or Decoding()))
        return [Sentence((Text(row[0].text, role="assistant"),)) for row in best]

    def decoding(self, decoding: Decoding) -> Decoding:
        """How an answer is searched for: as asked, with the tokens of its own that this system ends with or bars."""
        return decoding

    def figures(self) -> dict[str, float]:
        """Numbers of its own that a training log shows over time, by name; they are read, not minimised."""
        return {}

    def learn(self, sentences: Iterable[Sentence]) -> None:
        """Called once before training with its sentences: what is told by them, or taken from another graft.

        They are made as they are asked for; those of a stream are not among them.
        """

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Called before trained tensors are copied in: a part whose size follows from its data takes theirs."""

    def after_step(self) -> None:
        """Called after every step of the optimiser: what a paper does to its parameters then."""

    @torch.no_grad()
    def log_likelihoods(
        self,
        prompt: Sentence,
        candidates: Sequence[str],
        *,
        released: bool = False,
        opening: Opening | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood of candidate continuations of one prompt, in nats, and their numbers of tokens.

        The prompt is computed once, and what it begins with not even that where an `opening` stands before it.
        `released`: as FROMAGe's evaluation script does it, each candidate after a BOS of
        its own and every token scored after it has been read.
        Shapes:
            returns: (C,) float, (C,) long
        Raises: UsageError without a language model; ShapeError for a candidate without a token.
        """
        if not self.has_lm:
            raise self._cannot_write()
        words = self.lm.tokenizer
        start = [words.bos_id] if released and words.bos_id is not None else []
        ids = [[*start, *words.encode(text)] for text in candidates]
        if opening is None:
            inputs = self.inputs([prompt.prompt()])
        else:
            inputs = opening.skip(self.inputs([opening.sentence + prompt.prompt()]))
        return score_candidates(self.lm, inputs, ids, shifted=not released)

    @torch.no_grad()
    def class_scores(
        self,
        sentences: Sequence[Sentence],
        words: Sequence[Sequence[str]],
        *,
        pooling: Pooling = "first",
        references: Sequence[Sentence] = (),
    ) -> Tensor:
        """Log-probabilities (B, C) of the classes of tasks' sentences, told by their words (`lm.verbalise`).

        `references`: sentences that say nothing, by whose mean the words' probabilities are divided.
        Raises: UsageError without a language model, or with one that scores no words.
        """
        if not self.has_lm or not self.lm.has_head:
            raise self._cannot_write()
        verbaliser = Verbaliser.of(self.lm.tokenizer, words, pooling)
        prior = None
        if references:
            prior = verbaliser.word_probs(cloze_logits(self.lm, self.inputs(references))).mean(dim=0)  # (W,)
        return verbaliser.scores(cloze_logits(self.lm, self.inputs(sentences)), prior)

    def tokens(self, sentences: Sequence[Sentence], layout: Layout | None = None) -> TokenBatch:
        """Sentences in this system's layout, or another one, on the language model's device."""
        batch = tokenize(sentences, self.lm.tokenizer, self._within_context(layout or self.layout))
        device = next(self.lm.parameters()).device
        moved = {name: getattr(batch, name).to(device) for name in _TENSORS}
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
        """Everything a graft holds: trained parameters by name, and those that are held."""
        mine = ((name, one) for name, one in self.named_parameters() if one.requires_grad or name in self.held)
        return {name: parameter.detach() for name, parameter in mine}

    def train_only(self, patterns: Sequence[str]) -> None:
        """Holds every trained parameter whose name fits none of the patterns (`*` stands for anything).

        Raises: ConfigError for a pattern that no trained parameter fits.
        """
        names = [name for name, _ in self.trainable()]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"system.only: expected patterns of trained tensors, found '{pattern}', which none fits; "
                    f"there are {', '.join(names[:4])} ..."
                )
        kept = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
        self.held = frozenset(names) - kept
        for name in self.held:
            self.get_parameter(name).requires_grad_(False)

    def parameter_counts(self) -> dict[str, int]:
        """Trained numbers: `stored`, all that the method keeps; `touched`, those that training can reach."""
        touched = sum(parameter.numel() for _, parameter in self.trainable())
        held = sum(self.get_parameter(name).numel() for name in self.held)
        return {"stored": touched + held, "touched": touched}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every frozen part, by role ("lm", "encoders.image")."""
        found = {"lm": self.lm.fingerprint} if self.has_lm else {}
        for modality, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            found[f"encoders.{modality}"] = encoder.fingerprint
        return found

    def train(self, mode: bool = True) -> Self:
        """Training mode for the trained parts; frozen parts, and running statistics everywhere, stay as they are."""
        super().train(mode)
        for part in (*([self.lm] if self.has_lm else []), *self.encoders.values()):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()  # its statistics are no parameters: a checkpoint would not hold them
        return self

    def _within_context(self, layout: Layout) -> Layout:
        longest = min(layout.max_length, self.lm.context_length)
        return replace(layout, max_length=longest, mask_id=None if self.lm.is_causal else self.lm.mask_id)

    def _cannot_write(self) -> UsageError:
        return UsageError(
            f"{self.name}: expected a system with a language model, found one that only compares pictures and words; "
            "search with `graft find`, or choose another graft"
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> System:
        """A graft by ready-made name, folder, run or hub id. Raises: CheckpointError when it does not fit."""
        from graftlm.grafts import load

        return load(source)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes graft.json, graft.safetensors and the card, complete or not at all."""
        from graftlm.grafts import save

        save(self, Path(folder))


class TextSystem(System, ABC):
    """A system that reads words alone: it writes what follows, or tells classes apart (by the label word or a head)."""

    config: PromptConfig

    def __init__(self, config: PromptConfig, parts: Parts, head: PooledHead | None = None) -> None:
        super().__init__(config, parts)
        self.head = head or pooled_head(parts.lm, config.head, config.num_classes)

    @property
    def writes(self) -> bool:
        """Whether it answers in words; a head gives classes alone."""
        return self.head is None and super().writes

    @property
    def taken(self) -> tuple[int, int]:
        """Positions of the longest row that a prompt takes: before the words, and before them in every layer."""
        return 0, 0

    @property
    def layout(self) -> Layout:
        """The words, in what the prompt leaves of the longest row."""
        taken = sum(self.taken)
        room = min(self.config.max_length, self.lm.context_length) - taken
        if room < _LEAST_ROOM:
            raise ConfigError(
                f"system.max_length: expected {_LEAST_ROOM} positions behind a prompt of {taken}, found {room}; "
                "raise max_length, as far as the language model goes, or lower num_tokens"
            )
        return Layout(bos="start", max_length=room)

    def read(self, sentences: Sequence[Sentence]) -> TokenBatch:
        """The words. Raises: DataError where there is more than words."""
        batch = self.tokens(sentences)
        if batch.media:
            kind = type(batch.media[0]).__name__.lower()
            raise DataError(f"{self.name}: expected words alone, found a part of type {kind}; choose another system")
        return batch

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Cross-entropy of the class, or of all targets."""
        if self.head is not None:
            return {"label": pooled_loss(self._logits(self.head, sentences), sentences)}
        inputs = self.inputs(sentences)
        if self.config.loss == "verbaliser":
            return {"label": verbaliser_loss(self.lm, inputs, sentences)}
        return {"label": self.target_loss(inputs)}

    @torch.no_grad()
    def class_scores(self, sentences: Sequence[Sentence], words: Sequence[Sequence[str]], **how: Any) -> Tensor:
        """Log-probabilities of the classes, (B, C); a head has no words, so that nothing calibrates it."""
        if self.head is None:
            return super().class_scores(sentences, words, **how)
        return self._logits(self.head, sentences).log_softmax(dim=-1)

    def _logits(self, head: PooledHead, sentences: Sequence[Sentence]) -> Tensor:
        logits: Tensor = head(head.pool(self.lm, self.inputs(asked(self.lm, sentences)), self.taken[0]))
        return logits


def distinct(media: Sequence[MediaPart]) -> tuple[list[MediaPart], list[int]]:
    """Each medium once, in order, and which of them every given one is; told by name or object, nothing is read."""
    numbers: dict[tuple[type, object], int] = {}
    once: list[MediaPart] = []
    places: list[int] = []
    for part in media:
        source = getattr(part, "source", part)
        key = (type(part), source if isinstance(source, str | Path | State) else id(source))
        if key not in numbers:
            numbers[key] = len(once)
            once.append(part)
        places.append(numbers[key])
    return once, places


def content_keys(media: Sequence[MediaPart]) -> Tensor:
    """(N,) long, equal for equal contents, in every process."""
    return torch.tensor([int(content_hash(part)[:15], 16) for part in media])


@torch.no_grad()
def embed_in_batches(
    items: Sequence[T], embed: Callable[[list[T]], Tensor], width: int, length: Callable[[T], int], *, size: int = 64
) -> Tensor:
    """Vectors (N, width) float32 on the CPU of any number of items, `size` of like length at a time."""
    found = torch.zeros(len(items), width)
    order = sorted(range(len(items)), key=lambda index: length(items[index]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        found[places] = embed([items[place] for place in places]).float().cpu()
    return found


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


def trained_tensors(source: str | Path) -> dict[str, Tensor]:
    """The tensors of another graft: what a published method begins with. Raises: CheckpointError."""
    from graftlm.grafts import tensors_of

    return tensors_of(source)


def system_names() -> list[str]:
    """The systems that exist: one file each in this folder."""
    folder = Path(__file__).parent
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name != "base")


def system_class(name: str) -> type[System]:
    """The system of a name. Raises: ConfigError for an unknown one, with the nearest."""
    names = system_names()
    if name not in names:
        raise ConfigError(unknown("system", name, names))
    module = importlib.import_module(f"graftlm.systems.{name}")
    found = [item for item in vars(module).values() if isinstance(item, type) and getattr(item, "name", None) == name]
    return found[0]
