"""Soft tokens into their slots: the only place where counts are checked."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from graftlm.data.tokenize import IGNORED, TokenBatch
from graftlm.errors import ConfigError, ShapeError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, Memory, PrefixGeometry

_MOST_COMPARED = 1 << 22
"""Words that are compared with those of all other rows; of larger batches nobody looks which rows begin alike."""


def compose(
    lm: LanguageModel,
    batch: TokenBatch,
    soft: Tensor | None = None,
    *,
    memory: Memory | None = None,
    prefix: KVPrefix | None = None,
) -> LMInputs:
    """One call's inputs from tokens and what the media became.

    Shapes:
        soft: (N, K, D), fills the slots of the batch in reading order; None where it has no slots
    Raises: ShapeError when the soft tokens and the slots differ in number or width.
    """
    embeds = lm.embed(batch.ids)  # (B, L, D)
    places = batch.slots >= 0  # (B, L)
    wanted = int(places.sum())
    given = 0 if soft is None else soft.shape[0] * soft.shape[1]
    if wanted != given:
        raise ShapeError(f"expected {wanted} soft tokens for the slots of the batch, found {given}; check num_tokens")
    if soft is not None and wanted:
        if soft.shape[-1] != lm.dim:
            raise ShapeError(f"soft tokens of width {soft.shape[-1]} do not fit a language model of width {lm.dim}")
        flat = soft.reshape(-1, lm.dim).to(embeds.dtype)  # (N * K, D)
        embeds = embeds.masked_scatter(places[..., None], flat[batch.slots[places]])
    _check_rows(len(batch.ids), memory, prefix)
    words_alone = not wanted and memory is None and _is_one_prefix(prefix)
    compared = len(batch.ids) * batch.ids.numel()
    owners = first_owners(batch.ids, batch.mask) if words_alone and compared <= _MOST_COMPARED else None
    return LMInputs(embeds, batch.mask, batch.labels, memory, prefix, owners)


def first_owners(ids: Tensor, mask: Tensor) -> Tensor:
    """For every position the first row that begins with the same words up to it: (B, L) long.

    At padding it is the row itself, and behind padding, too. Shapes: ids (B, L) long; mask (B, L) bool
    """
    alike = (ids[:, None] == ids[None]) & mask[:, None] & mask[None]  # (B, B, L)
    alike = alike.cumprod(dim=2) > 0
    alike |= torch.eye(len(ids), dtype=torch.bool, device=ids.device)[..., None]
    return alike.to(torch.int8).argmax(dim=1)


def _is_one_prefix(prefix: KVPrefix | None) -> bool:
    """Whether all rows have the same prefix, or none."""
    if prefix is None:
        return True
    same = _is_one_for_all(prefix.keys, 1) and _is_one_for_all(prefix.values, 1)
    return same and bool((prefix.mask == prefix.mask[:1]).all())


def _is_one_for_all(tokens: Tensor, dim: int) -> bool:
    """Whether all rows of a tensor are one in memory, as `expand` leaves them."""
    return tokens.shape[dim] == 1 or tokens.stride(dim) == 0


def compose_items(lm: LanguageModel, batch: TokenBatch, soft: Tensor | None, *, as_prefix: bool) -> LMInputs:
    """What the media became as word vectors in their slots (N, K, D), or as every layer's prefix (N, K, token_dim)."""
    if not as_prefix:
        return compose(lm, batch, soft)
    return compose(lm, batch, prefix=prefix_of_items(soft, batch.rows, len(batch.ids), lm.prefix_geometry))


def _check_rows(rows: int, memory: Memory | None, prefix: KVPrefix | None) -> None:
    if memory is not None and memory.states.shape[0] != rows:
        raise ShapeError(f"memory for {memory.states.shape[0]} rows given to a batch of {rows}")
    if prefix is not None and prefix.mask.shape[0] != rows:
        raise ShapeError(f"prefix for {prefix.mask.shape[0]} rows given to a batch of {rows}")


def gather_items(tokens: Tensor, owners: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens of N media items side by side in the rows they belong to, in reading order.

    Shapes:
        tokens: (N, K, W); owners: (N,) long, ascending
        returns: (rows, items * K, W) and its mask (rows, items * K) bool, items = most items of one row
    """
    counts = torch.bincount(owners, minlength=rows)  # (rows,)
    most = int(counts.max())
    place = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]  # (N,)
    joined = tokens.new_zeros(rows, most, *tokens.shape[1:])  # (rows, items, K, W)
    joined = joined.index_put((owners, place), tokens)
    filled = torch.arange(most, device=owners.device) < counts[:, None]  # (rows, items)
    return joined.flatten(1, 2), filled.repeat_interleave(tokens.shape[1], dim=1)


def prefix_of_items(soft: Tensor | None, owners: Tensor, rows: int, geometry: PrefixGeometry) -> KVPrefix | None:
    """Soft tokens (N, K, token_dim) of media items as each row's per-layer prefix; None without media."""
    if soft is None:
        return None
    if len(owners) == rows and bool((owners == torch.arange(rows, device=owners.device)).all()):
        mask = torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device)
        return KVPrefix.from_tokens(soft, mask, geometry)
    return KVPrefix.from_tokens(*gather_items(soft, owners, rows), geometry)


def prepend(inputs: LMInputs, soft: Tensor, mask: Tensor) -> LMInputs:
    """The same rows with soft tokens before all else: a prompt (arXiv:2104.08691).

    Shapes:
        soft: (B, K, D); mask: (B, K) bool
    Raises: ShapeError when the soft tokens are of another width than the language model.
    """
    if soft.shape[-1] != inputs.embeds.shape[-1]:
        found, wanted = soft.shape[-1], inputs.embeds.shape[-1]
        raise ShapeError(f"soft tokens of width {found} do not fit a language model of width {wanted}")
    embeds = torch.cat([soft.to(inputs.embeds.dtype), inputs.embeds], dim=1)  # (B, K + L, D)
    labels = inputs.labels
    if labels is not None:
        labels = torch.cat([labels.new_full(mask.shape, IGNORED), labels], dim=1)
    memory = inputs.memory
    if memory is not None:
        before = memory.mask.new_zeros(*mask.shape, memory.mask.shape[2])
        memory = replace(memory, mask=torch.cat([before, memory.mask], dim=1))
    owners = inputs.owners
    if owners is not None:
        is_shared = _is_one_for_all(soft, 0) and bool(mask.all())
        owners = torch.cat([owners.new_zeros(mask.shape), owners], dim=1) if is_shared else None
    return LMInputs(embeds, torch.cat([mask, inputs.mask], dim=1), labels, memory, inputs.prefix, owners)


def text_ids(lm: LanguageModel, text: str, length: int) -> Tensor:
    """Ids of a text, cut or repeated to `length`: (length,) long. Raises: ConfigError for a text without a token."""
    ids = lm.tokenizer.encode(text)
    if not ids:
        raise ConfigError(f"system.init_text: expected words that the prompt starts from, found {text!r}; write some")
    return torch.tensor((ids * length)[:length], device=next(lm.parameters()).device)


def text_as_prefix(lm: LanguageModel, text: str, length: int) -> Tensor:
    """What the model itself keeps of a text, BOS first, cut or repeated to `length` positions: (length, token_dim).

    A prefix that starts from words is learnt from few data where one that starts from noise is not (arXiv:2101.00190
    section 7.4). Raises: UnsupportedLMError where the LM takes no prefix.
    """
    tokenizer = lm.tokenizer
    words = [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode(text)]
    return ids_as_prefix(lm, torch.tensor((words * length)[:length], device=next(lm.parameters()).device))


@torch.no_grad()
def ids_as_prefix(lm: LanguageModel, ids: Tensor) -> Tensor:
    """What the model itself keeps of the words (P,): (P, token_dim) float32. Raises: UnsupportedLMError."""
    cache = lm.new_cache(1, len(ids))
    lm(LMInputs(lm.embed(ids[None]), torch.ones_like(ids[None], dtype=torch.bool)), cache=cache)
    return lm.read_cache(cache).tokens()[0].float()


def memory_of_items(tokens: Tensor, owners: Tensor, reads: Tensor, *, earlier_too: bool = False) -> Memory:
    """Tokens of N media items as the memory of the rows they belong to.

    A position reads the item whose number in its row stands in `reads` (Flamingo §3.1.3, arXiv:2204.14198: the latest
    before it, which `TokenBatch.seen` holds); with `earlier_too` all items up to it.

    Shapes:
        tokens: (N, K, Dm); owners: (N,) long, ascending; reads: (B, L) long, counted from 1, 0 = none
    """
    states, _ = gather_items(tokens, owners, len(reads))  # (B, items * K, Dm)
    number = torch.arange(states.shape[1], device=reads.device) // tokens.shape[1] + 1  # (items * K,)
    mask = number <= reads[..., None] if earlier_too else number == reads[..., None]  # (B, L, items * K)
    return Memory(states, mask)


def following_items(batch: TokenBatch, rows: Tensor) -> Tensor:
    """`batch.seen` in which the words of the chosen rows go with the media item after them, the last with none.

    Shapes:
        rows: (B,) bool; returns: (B, L) long
    """
    counts = torch.bincount(batch.rows, minlength=len(rows))[:, None]  # (B, 1)
    after = (batch.seen + 1).masked_fill(batch.seen == counts, 0)
    return torch.where(rows[:, None], after, batch.seen)
