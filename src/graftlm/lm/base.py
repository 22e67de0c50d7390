"""The one call to a language model, and the data that goes in and out of it.

Index letters: B rows, L positions, M memory positions, P prefix positions, D width, V vocabulary.
Masks: True = may be used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from graftlm.errors import UnsupportedLMError
from graftlm.losses import causal_lm


class Tokenizer(Protocol):
    """What GraftLM needs of a tokenizer; special tokens are never read out of plain text."""

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; the spelling of a special token inside it stays plain text."""

    def encode_template(self, text: str) -> list[int]:
        """Ids of trusted template text, in which special tokens count."""

    def decode(self, ids: list[int]) -> str:
        """Words of ids, special tokens left out."""

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The LM's own chat template as one string. Raises: BackboneError when it has none."""


@runtime_checkable
class Projecting(Protocol):
    """A cross-attention block that makes keys and values of a memory, which are the same at every step."""

    def project(self, states: Tensor) -> Tensor:
        """(B, M, Dm) to keys and values (2, B, H, M, d)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What cross-attention may read.

    Shapes:
        states: (B, M, Dm) float
        mask: (B, L, M) bool, which memory each text position may read
        projected: (2, B, H, M, d) by the block that made them of `states`; a block that is missing makes them itself
    """

    states: Tensor
    mask: Tensor
    projected: Mapping[Any, Tensor] = field(default_factory=dict)

    def project(self, blocks: Iterable[nn.Module]) -> Memory:
        """The same memory with what the blocks make of it, so that no later call has to."""
        made = {block: block.project(self.states) for block in blocks if isinstance(block, Projecting)}
        return replace(self, projected=made)

    def select(self, rows: Tensor) -> Memory:
        """The memory of the given rows, in the given order."""
        projected = {block: made[:, rows] for block, made in self.projected.items()}
        return Memory(self.states[rows], self.mask[rows], projected)


@dataclass(frozen=True, slots=True)
class PrefixGeometry:
    """The shape of a per-layer prefix of one language model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def token_dim(self) -> int:
        """Numbers in one prefix position: keys and values of every layer."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class KVPrefix:
    """Keys and values put before the text in every layer (prefix tuning, arXiv:2101.00190 §4).

    Shapes:
        keys, values: (num_layers, B, num_kv_heads, P, head_dim) float; rotary models take the keys as they are
        mask: (B, P) bool
    """

    keys: Tensor
    values: Tensor
    mask: Tensor

    @staticmethod
    def from_tokens(tokens: Tensor, mask: Tensor, geometry: PrefixGeometry) -> KVPrefix:
        """Splits soft tokens (B, P, token_dim) into layers, keys and values: the flat layout peft uses."""
        rows, length, _ = tokens.shape
        split = tokens.view(rows, length, geometry.num_layers, 2, geometry.num_kv_heads, geometry.head_dim)
        keys, values = split.permute(3, 2, 0, 4, 1, 5).unbind(0)  # each (layers, B, heads, P, head_dim)
        return KVPrefix(keys, values, mask)

    def tokens(self) -> Tensor:
        """The inverse of `from_tokens`: (B, P, token_dim)."""
        both = torch.stack([self.keys, self.values])  # (2, layers, B, heads, P, head_dim)
        return both.permute(2, 4, 1, 0, 3, 5).flatten(2)


@dataclass(frozen=True, slots=True)
class LMInputs:
    """Everything one call to a language model takes.

    Shapes:
        embeds: (B, L, D); mask: (B, L) bool; labels: (B, L) long, -100 = no target, or None
        labels[b, t] is the id AT position t (not shifted)
        owners: (B, L) long, the first row that begins as this one does up to a position, or None where nobody looked;
            a pass from left to right may compute such positions once
    """

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None = None
    memory: Memory | None = None
    prefix: KVPrefix | None = None
    owners: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def up_to(self, at: Tensor) -> tuple[LMInputs, Tensor]:
        """The same rows without what follows the last position of `at` in each, and `at` for them; labels are dropped.

        Nothing before depends on it, so logits at `at` stay what they are.
        """
        needed = at.flip(1).cumsum(dim=1).flip(1) > 0  # (B, L)
        needed[:, 0] = True
        length = int(needed.any(dim=0).sum())
        memory = self.memory
        if memory is not None:
            memory = replace(memory, mask=memory.mask[:, :length])
        mask = (self.mask & needed)[:, :length]
        owners = None if self.owners is None else self.owners[:, :length]
        return LMInputs(self.embeds[:, :length], mask, None, memory, self.prefix, owners), at[:, :length]

    def select(self, rows: Tensor) -> LMInputs:
        """The given rows, (N,) long, in the given order."""
        memory, prefix = self.memory, self.prefix
        if memory is not None:
            memory = Memory(memory.states[rows], memory.mask[rows])
        if prefix is not None:
            prefix = KVPrefix(prefix.keys[:, rows], prefix.values[:, rows], prefix.mask[rows])
        labels = None if self.labels is None else self.labels[rows]
        return LMInputs(self.embeds[rows], self.mask[rows], labels, memory, prefix)

    def align_left(self) -> LMInputs:
        """The same rows with their padding moved to the left, as decoding needs it; labels are dropped."""
        length = self.mask.shape[1]
        order = torch.argsort(self.mask.to(torch.int8), dim=1, stable=True)  # (B, L) pads first
        embeds = self.embeds.gather(1, order[..., None].expand_as(self.embeds))
        memory = self.memory
        if memory is not None:
            index = order[..., None].expand(-1, length, memory.mask.shape[2])
            memory = replace(memory, mask=memory.mask.gather(1, index))
        return LMInputs(embeds, self.mask.gather(1, order), None, memory, self.prefix)


@dataclass(frozen=True, slots=True)
class LMOutput:
    """What one call gives back.

    Shapes:
        logits: (B, L, V), or (P, V) for the P positions chosen by `at`
        hidden: (B, L, D), the input of the output matrix, or the deepest layer that was needed
        layers: (B, L, D) each, the hidden states that were asked for, in that order
    """

    logits: Tensor
    hidden: Tensor
    cache: Any = None
    layers: tuple[Tensor, ...] = ()


class LanguageModel(nn.Module, ABC):
    """A language model whose own weights are not trained unless a system says so.

    Attributes:
        dim: D; vocab_size: V; context_length: positions it was made for
        num_layers: decoder layers; hidden_dim: width of what goes from one to the next, nearly always D
        is_causal: whether a position sees only what stands before it; False for a masked LM, which has no cache
        has_head: whether it has an output matrix; without one its logits are empty, and `pool` is what is read
        mask_id: of a masked LM, the token that stands for what is to be told
        tokenizer: its tokenizer; fingerprint: hex digest of config, weights and tokenizer
    """

    dim: int
    vocab_size: int
    context_length: int
    num_layers: int
    hidden_dim: int
    tokenizer: Tokenizer
    fingerprint: str
    is_causal: bool = True
    has_head: bool = True
    mask_id: int | None = None

    @property
    def blocks(self) -> Mapping[int, nn.Module]:
        """The cross-attention blocks that are attached, by decoder layer."""
        return {}

    @property
    @abstractmethod
    def prefix_geometry(self) -> PrefixGeometry:
        """The shape a `KVPrefix` must have. Raises: UnsupportedLMError where no prefix can be taken."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors of ids: (B, L) long to (B, L, D)."""

    @abstractmethod
    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass.

        `cache`: from `new_cache`; inputs then continue what it holds, and `inputs.mask` covers only the
        new positions. `at`: (B, L) bool, the positions whose logits are wanted; None = all. `layers`: hidden states
        wanted besides, 0 = the embeddings, i = after layer i, -1 = the last, the input of the output matrix. Where they
        are given and `at` chooses no position, nothing above the deepest of them need be computed: `hidden` is then
        that one, and a cache holds no more than the layers below it.
        Raises: ShapeError when widths or counts do not fit, or there is no such layer.
        """

    def target_loss(
        self, inputs: LMInputs, at: Tensor, targets: Tensor, extra: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Mean cross-entropy of the tokens that follow the positions `at`; all logits need not be made at once.

        `extra`: logits of E ids behind the vocabulary, of hidden states: (P, D) to (P, E) float32.
        Shapes:
            at: (B, L) bool; targets: (P,) long in [0, V + E), in the order of `at`; returns: scalar
        """
        output = self(inputs, at=at)
        logits = output.logits
        if extra is not None:
            logits = torch.cat([logits, extra(output.hidden[at]).to(logits.dtype)], dim=-1)
        return causal_lm(logits, targets)

    @abstractmethod
    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (..., D) to (..., V)."""

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """Input and output vectors of the vocabulary, (V, D) each; the same tensor where they are tied.

        Raises: UnsupportedLMError where there are no such matrices.
        """
        raise UnsupportedLMError(f"{type(self).__name__} does not show its word vectors; no token can be added to it")

    def finish_logits(self, logits: Tensor) -> Tensor:
        """What comes after the output matrix: a family's own scale or cap."""
        return logits

    @abstractmethod
    def new_cache(self, rows: int, length: int) -> Any:
        """An empty cache for `rows` rows of at most `length` positions, prefix included."""

    @abstractmethod
    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> Any:
        """The cache of the given rows alone, in the given order (beam search, finished rows).

        The old cache stays as it was, unless it is to be dropped: its memory may be used again then.
        """

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector a row, which a linear head can read: (B, L, D) and (B, L) to (B, D); here the last one in use."""
        last = (mask.long().cumsum(dim=1) * mask).argmax(dim=1)  # (B,)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]

    def spare_memory(self) -> None:
        """Gives back what only mirrors a file or was held for a moment; nothing changes but the memory in use."""

    @abstractmethod
    def read_cache(self, cache: Any) -> KVPrefix:
        """What a cache holds, as a prefix that other rows can continue."""

    @abstractmethod
    def add_lora(self, rank: int) -> None:
        """Adds trainable low-rank updates to every linear map of the decoder (arXiv:2106.09685), through peft.

        Raises: MissingExtraError without peft; UnsupportedLMError for an LM that is not a Hugging Face model.
        """

    @abstractmethod
    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Applies ``block(hidden, memory) -> hidden`` before decoder layer i for every i in `blocks`.

        The blocks stay in the caller's module tree. Raises: UnsupportedLMError when a layer is not reached.
        """
