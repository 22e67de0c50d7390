"""A language model for tests: two rotary layers over bytes, seeded, built in milliseconds, yet steerable.

It has every part of the contract: embeds, memory, prefix, cache, `at`, chat template and fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.errors import ShapeError, UnsupportedLMError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, PrefixGeometry
from graftlm.lm.checks import check_inputs, position_ids, wanted_layers

_END = "<|end|>"


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, then BOS, EOS and padding; in template text ``<|end|>`` is EOS."""

    vocab_size = 259
    bos_id: int | None = 256
    eos_id = 257
    pad_id = 258

    def encode(self, text: str) -> list[int]:
        """Bytes of plain text."""
        return list(text.encode("utf-8"))

    def encode_template(self, text: str) -> list[int]:
        """Bytes of template text, with every ``<|end|>`` as EOS."""
        ids: list[int] = []
        for index, piece in enumerate(text.split(_END)):
            ids.extend(([self.eos_id] if index else []) + self.encode(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Words of ids; broken UTF-8 becomes the replacement character."""
        return bytes(number for number in ids if number < 256).decode("utf-8", errors="replace")

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """``<|role|>``, the content and ``<|end|>`` per message."""
        turns = [f"<|{message['role']}|>\n{message['content']}{_END}\n" for message in messages]
        return "".join(turns) + ("<|assistant|>\n" if add_generation_prompt else "")


@dataclass
class ToyCache:
    """Keys and values of the past, written in place; `length` places are filled.

    Shapes:
        keys, values: per layer (rows, heads, capacity, head_dim); mask: (rows, capacity) bool
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    length: int = 0


def _rotate(states: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864): states (B, H, L, d), positions (B, L)."""
    half = states.shape[-1] // 2
    speeds = 100.0 ** (-torch.arange(half, device=states.device) / half)
    angles = (positions[:, None, :, None] * speeds).to(states.dtype)  # (B, 1, L, d / 2)
    left, right = states[..., :half], states[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class _Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(dim), nn.RMSNorm(dim)])
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def project(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, L, d)."""
        qkv = self.qkv(self.norms[0](hidden)).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return _rotate(query, positions), _rotate(key, positions), value

    def finish(self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, usable: Tensor) -> Tensor:
        """The layer's output: hidden (B, L, D), usable (B, 1, L, S) bool."""
        scores = query @ key.mT / query.shape[-1] ** 0.5  # (B, H, L, S)
        weights = scores.masked_fill(~usable, torch.finfo(scores.dtype).min).softmax(dim=-1)
        hidden = hidden + self.out((weights @ value).transpose(1, 2).flatten(2))
        added: Tensor = self.down(F.gelu(self.up(self.norms[1](hidden))))
        return hidden + added


class ToyLM(LanguageModel):
    """A byte-level decoder with random weights drawn from `seed`."""

    def __init__(self, seed: int = 0, dim: int = 96, num_layers: int = 2, num_heads: int = 8) -> None:
        super().__init__()
        self.tokenizer = ByteTokenizer()
        self.dim = dim
        self.vocab_size = self.tokenizer.vocab_size
        self.context_length = 1024
        self.num_layers, self.hidden_dim = num_layers, dim
        self.num_heads = num_heads
        self.tokens = nn.Embedding(self.vocab_size, dim)
        self.layers = nn.ModuleList([_Layer(dim, num_heads) for _ in range(num_layers)])
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, self.vocab_size, bias=False)
        self._blocks: dict[int, nn.Module] = {}
        self._draw(seed)
        self.eval()
        self.fingerprint = self._digest()

    def _draw(self, seed: int) -> None:
        """Random weights in which attention outweighs words, so that soft tokens can steer what is written."""
        gains = {"tokens": self.dim**0.5 * 0.2, "qkv": 1.5, "out": 1.5, "up": 1.0, "down": 0.3, "output": 4.0}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() == 2:
                    gain = gains[name.split(".")[-2]] * weight.shape[1] ** -0.5
                    weight.copy_(torch.randn(weight.shape, generator=generator) * gain)
            for layer in self.layers:
                assert isinstance(layer, _Layer)
                layer.qkv.weight[2 * self.dim :].mul_(2.0)  # values
            self.output.weight[self.tokenizer.pad_id] = 0.0

    def _digest(self) -> str:
        digest = hashlib.sha256(f"toy {self.num_heads}".encode())
        for name, weight in self.state_dict().items():
            digest.update(f"\0{name}\0{tuple(weight.shape)}\0".encode() + weight.numpy().tobytes())
        return digest.hexdigest()

    @property
    def blocks(self) -> Mapping[int, nn.Module]:
        """The attached blocks."""
        return self._blocks

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        """Every head has its own keys and values."""
        return PrefixGeometry(len(self.layers), self.num_heads, self.dim // self.num_heads)

    def embed(self, ids: Tensor) -> Tensor:
        """Byte vectors: (B, L) to (B, L, D)."""
        vectors: Tensor = self.tokens(ids)
        return vectors

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """Input and output vectors, which are not tied."""
        return self.tokens.weight, self.output.weight

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits: Tensor = self.output(hidden)
        return logits

    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass; see `LanguageModel.forward`."""
        numbers, depth = wanted_layers(layers, len(self.layers), at)
        past = cache.length if cache is not None else 0
        check_inputs(self, inputs, past=past, has_blocks=bool(self._blocks))
        dtype, length = self.tokens.weight.dtype, inputs.embeds.shape[1]
        prefix = inputs.prefix
        before = cache.mask[:, :past] if past else prefix.mask if prefix is not None else inputs.mask[:, :0]
        mask = torch.cat([before, inputs.mask], dim=1)  # (B, S)
        positions = position_ids(mask, length)
        causal = torch.ones(length, mask.shape[1], dtype=torch.bool, device=mask.device).tril(before.shape[1])
        usable = (mask[:, None, :] & causal)[:, None]  # (B, 1, L, S)
        if cache is not None:
            _reserve(cache, inputs)
        hidden = inputs.embeds.to(dtype)
        states = [hidden]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            if inputs.memory is not None and index in self._blocks:
                hidden = self._blocks[index](hidden, inputs.memory)
            query, key, value = layer.project(hidden, positions)
            if cache is not None:
                key, value = _continue(cache, index, key, value)
            elif prefix is not None:
                key = torch.cat([prefix.keys[index].to(dtype), key], dim=2)
                value = torch.cat([prefix.values[index].to(dtype), value], dim=2)
            hidden = layer.finish(hidden, query, key, value, usable)
            states.append(hidden)
        states[-1] = self.norm(hidden)
        hidden = states[depth]
        logits = self.unembed(hidden if at is None else hidden[at])
        return LMOutput(logits, hidden, cache, tuple(states[number] for number in numbers))

    def new_cache(self, rows: int, length: int) -> ToyCache:
        """An empty cache for `rows` rows of at most `length` positions."""
        shape = (rows, self.num_heads, length, self.dim // self.num_heads)
        like = self.tokens.weight.detach()
        return ToyCache(
            [like.new_zeros(shape) for _ in self.layers],
            [like.new_zeros(shape) for _ in self.layers],
            torch.zeros(rows, length, dtype=torch.bool, device=like.device),
        )

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> ToyCache:
        """The given rows, in the given order; the old cache stays as it was."""
        keys, values = ([kept[rows] for kept in side] for side in (cache.keys, cache.values))
        return ToyCache(keys, values, cache.mask[rows], cache.length)

    def add_lora(self, rank: int) -> None:
        """Raises: UnsupportedLMError: the toy has no peft."""
        raise UnsupportedLMError("LoRA needs a Hugging Face language model, found the toy one; choose another")

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Applies ``block(hidden, memory)`` before layer i. Raises: UnsupportedLMError for a layer it has not."""
        missing = sorted(set(blocks) - set(range(len(self.layers))))
        if missing:
            raise UnsupportedLMError(f"the toy LM has {len(self.layers)} layers, found a block for layer {missing[0]}")
        self._blocks = dict(blocks)  # a plain dict: the blocks stay in the caller's module tree

    def read_cache(self, cache: Any) -> KVPrefix:
        """What a cache holds."""
        kept = ([one[:, :, : cache.length] for one in side] for side in (cache.keys, cache.values))
        keys, values = map(torch.stack, kept)  # each (layers, B, heads, P, head_dim)
        return KVPrefix(keys, values, cache.mask[:, : cache.length])


def _reserve(cache: ToyCache, inputs: LMInputs) -> None:
    """Writes the prefix and the new places' mask, and counts the places."""
    rows, length = inputs.mask.shape
    wide = length if inputs.prefix is None else length + inputs.prefix.mask.shape[1]
    if rows != cache.mask.shape[0] or cache.length + wide > cache.mask.shape[1]:
        raise ShapeError(
            f"a cache for {cache.mask.shape[0]} rows of {cache.mask.shape[1]} positions, {cache.length} in use, "
            f"was given {rows} rows of {wide} more; ask new_cache for more"
        )
    if inputs.prefix is not None:
        size = inputs.prefix.mask.shape[1]
        for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            keys[:, :, :size] = inputs.prefix.keys[layer]
            values[:, :, :size] = inputs.prefix.values[layer]
        cache.mask[:, :size] = inputs.prefix.mask
        cache.length = size
    cache.mask[:, cache.length : cache.length + length] = inputs.mask
    cache.length += length


def _continue(cache: ToyCache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Writes a layer's new keys and values; returns all of them, (B, H, S, d)."""
    start = cache.length - key.shape[2]
    cache.keys[layer][:, :, start : cache.length] = key
    cache.values[layer][:, :, start : cache.length] = value
    return cache.keys[layer][:, :, : cache.length], cache.values[layer][:, :, : cache.length]
