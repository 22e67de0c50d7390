"""A frozen language model with a few trained tokens behind its vocabulary.

Ids below V are the frozen model's own; ids from V on are `ExtraTokens`. Everything else (cache, prefix, memory, the
fast decoding path) is the frozen model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from graftlm.errors import UnsupportedLMError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, PrefixGeometry, Tokenizer
from graftlm.nn.extra_tokens import ExtraTokens, NormPolicy


class ExtendedTokenizer:
    """A tokenizer with ids that no text spells; they decode to nothing."""

    def __init__(self, tokenizer: Tokenizer, first_id: int, count: int) -> None:
        self._tokenizer = tokenizer
        self._first_id = first_id
        self.vocab_size = first_id + count
        self.bos_id = tokenizer.bos_id
        self.eos_id = tokenizer.eos_id
        self.pad_id = tokenizer.pad_id

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._tokenizer.encode(text)

    def encode_template(self, text: str) -> list[int]:
        """Ids of trusted template text."""
        return self._tokenizer.encode_template(text)

    def decode(self, ids: list[int]) -> str:
        """Words of ids, special and extra tokens left out."""
        return self._tokenizer.decode([token for token in ids if token < self._first_id])

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The LM's own chat template."""
        return self._tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)


class ExtendedLM(LanguageModel):
    """`base` and `count` more tokens, whose vectors alone are trained.

    `own_outputs`: output vectors of their own, over standardised states, where the LM ties its own too, so that reading
    a token and writing it do not pull at one vector.

    Attributes:
        base: the frozen model; tokens: the vectors; extra_ids: their ids, V and following
    """

    def __init__(
        self, base: LanguageModel, count: int, *, norm: NormPolicy = "mean", own_outputs: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        inputs, outputs = base.token_rows()
        tied = outputs is inputs and not own_outputs
        scale = _input_scale(base, inputs)
        rows = None if tied else outputs
        self.tokens = ExtraTokens(inputs, rows, count, input_scale=scale, norm=norm, standardised=own_outputs)
        self.dim = base.dim
        self.vocab_size = base.vocab_size + count
        self.extra_ids = tuple(range(base.vocab_size, base.vocab_size + count))
        self.context_length = base.context_length
        self.num_layers, self.hidden_dim = base.num_layers, base.hidden_dim
        self.is_causal, self.has_head, self.mask_id = base.is_causal, base.has_head, base.mask_id
        self.fingerprint = base.fingerprint
        self.tokenizer = ExtendedTokenizer(base.tokenizer, base.vocab_size, count)

    @property
    def blocks(self) -> Mapping[int, nn.Module]:
        """The frozen model's."""
        return self.base.blocks

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        """The frozen model's."""
        return self.base.prefix_geometry

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """The frozen rows alone."""
        return self.base.token_rows()

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors: (B, L) long to (B, L, D)."""
        is_extra = ids >= self.base.vocab_size  # (B, L)
        if not bool(is_extra.any()):
            return self.base.embed(ids)
        embeds = self.base.embed(ids.masked_fill(is_extra, 0))
        own = self.tokens.embed(ids[is_extra] - self.base.vocab_size)  # (N, D)
        return embeds.masked_scatter(is_extra[..., None], own.to(embeds.dtype))

    def extra_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the extra tokens alone: (..., D) to (..., count) float32."""
        return self.base.finish_logits(self.tokens.logits(hidden))

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V + count) of hidden states."""
        return self._widen(self.base.unembed(hidden), hidden)

    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass; see `LanguageModel.forward`."""
        output = self.base(inputs, cache=cache, at=at, layers=layers)
        hidden = output.hidden if at is None else output.hidden[at]
        return LMOutput(self._widen(output.logits, hidden), output.hidden, output.cache, output.layers)

    def target_loss(
        self, inputs: LMInputs, at: Tensor, targets: Tensor, extra: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """See `LanguageModel.target_loss`. Raises: UnsupportedLMError for extra ids beside those it has."""
        if extra is not None:
            raise UnsupportedLMError("an extended language model was to be extended; give it all its tokens at once")
        return self.base.target_loss(inputs, at, targets, self.extra_logits)

    def new_cache(self, rows: int, length: int) -> Any:
        """The frozen model's."""
        return self.base.new_cache(rows, length)

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> Any:
        """The given rows, in the given order."""
        return self.base.select_cache(cache, rows, drop=drop)

    def spare_memory(self) -> None:
        """The frozen model's."""
        self.base.spare_memory()

    def read_cache(self, cache: Any) -> KVPrefix:
        """What a cache holds."""
        return self.base.read_cache(cache)

    def add_lora(self, rank: int) -> None:
        """Adds low-rank updates to the frozen model's maps."""
        self.base.add_lora(rank)

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Attaches blocks to the frozen model's layers."""
        self.base.attach_cross_attention(blocks)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained: a frozen model keeps its dropout off."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.base.parameters()):
            self.base.eval()
        return self

    def _widen(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat([logits, self.extra_logits(hidden).to(logits.dtype)], dim=-1)


@torch.no_grad()
def _input_scale(base: LanguageModel, rows: Tensor) -> float:
    """What the model multiplies its rows by on the way in (Gemma)."""
    index = int(torch.linalg.vector_norm(rows[:1024].detach(), dim=1, dtype=torch.float32).argmax())
    given = base.embed(torch.tensor([[index]], device=rows.device))[0, 0].float()
    scale = float(given.norm() / rows[index].detach().float().norm())
    return 1.0 if abs(scale - 1) < 1e-3 else scale
