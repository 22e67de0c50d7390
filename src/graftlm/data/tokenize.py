"""From sentences to padded token ids, with labels and the slots that media fill.

Segments are tokenised one by one, so a label's place is exact and no marker string exists: text that contains
"<image>" is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from graftlm.data.chat import Segment, segments
from graftlm.data.sentence import MediaPart, Sentence
from graftlm.errors import ShapeError

if TYPE_CHECKING:
    from graftlm.lm.base import Tokenizer

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Layout:
    """How one system lays a sentence out in positions.

    Attributes:
        media_tokens: K, positions a media item takes among the embeddings; 0 where media enter elsewhere
        bos: where the LM's BOS goes: before everything, after the leading media, or nowhere
        eos: whether a closing target is followed by EOS, which is then a target too
        max_length: longest row in positions; text beyond it is cut from the end
    """

    media_tokens: int = 0
    bos: Literal["start", "after_media", "none"] = "start"
    eos: bool = True
    max_length: int = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One sentence as ids; `slots` holds -1 for text and the running soft-token number for media."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    media: tuple[MediaPart, ...] = ()

    def add(self, ids: Sequence[int], *, target: bool, seen: int) -> None:
        """Appends text."""
        self.ids.extend(ids)
        self.labels.extend(ids if target else [IGNORED] * len(ids))
        self.slots.extend([-1] * len(ids))
        self.seen.extend([seen] * len(ids))

    def add_media(self, first_slot: int, count: int, *, pad_id: int, seen: int) -> None:
        """Appends the positions of one media item."""
        self.ids.extend([pad_id] * count)
        self.labels.extend([IGNORED] * count)
        self.slots.extend(range(first_slot, first_slot + count))
        self.seen.extend([seen] * count)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sentences as one right-padded batch.

    Shapes:
        ids, labels: (B, L) long; labels are -100 where nothing is to be predicted, and are not shifted
        mask: (B, L) bool
        slots: (B, L) long, -1 for text, else the index into the (N * K) soft tokens of the batch
        seen: (B, L) long, media items of this row at or before the position
        rows: (N,) long, the row of each media item
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    slots: Tensor
    seen: Tensor
    rows: Tensor
    media: tuple[MediaPart, ...]


def tokenize_row(sentence: Sentence, tokenizer: Tokenizer, layout: Layout) -> Row:
    """One sentence as ids. Raises: ShapeError when its media alone exceed `layout.max_length`."""
    row = Row(media=sentence.media())
    seen = 0
    parts = segments(sentence, tokenizer)
    bos = [] if _starts_with_bos(parts, tokenizer) else _start_ids(tokenizer, layout)
    waiting = layout.bos == "after_media"
    if layout.bos == "start":
        row.add(bos, target=False, seen=0)
    for index, part in enumerate(parts):
        if not isinstance(part, Segment):
            row.add_media(seen * layout.media_tokens, layout.media_tokens, pad_id=tokenizer.pad_id, seen=seen + 1)
            seen += 1
            continue
        if waiting:
            row.add(bos, target=False, seen=seen)
            waiting = False
        encode = tokenizer.encode_template if part.template else tokenizer.encode
        row.add(encode(part.text), target=part.target, seen=seen)
        if part.target and layout.eos and index == len(parts) - 1:
            row.add([tokenizer.eos_id], target=True, seen=seen)
    if waiting:
        row.add(bos, target=False, seen=seen)
    return _cut(row, layout)


def _starts_with_bos(parts: Sequence[Segment | MediaPart], tokenizer: Tokenizer) -> bool:
    """Whether the chat template has written BOS itself."""
    first = parts[0] if parts else None
    if not isinstance(first, Segment) or not first.template:
        return False
    return tokenizer.encode_template(first.text)[:1] == [tokenizer.bos_id]


def _start_ids(tokenizer: Tokenizer, layout: Layout) -> list[int]:
    """BOS; EOS for an LM without BOS where no soft token precedes the words, which need a position to start from."""
    if tokenizer.bos_id is not None:
        return [tokenizer.bos_id]
    return [] if layout.media_tokens else [tokenizer.eos_id]


def _cut(row: Row, layout: Layout) -> Row:
    if len(row.ids) <= layout.max_length:
        return row
    if any(slot >= 0 for slot in row.slots[layout.max_length :]):
        raise ShapeError(
            f"a sentence of {len(row.ids)} positions with {len(row.media)} media items does not fit into "
            f"{layout.max_length}; its media would be cut: use fewer items or a larger max_length"
        )
    end = layout.max_length
    return Row(row.ids[:end], row.labels[:end], row.slots[:end], row.seen[:end], row.media)


def collate(rows: Sequence[Row], *, pad_id: int, media_tokens: int) -> TokenBatch:
    """Pads rows on the right and numbers their soft tokens through the batch."""
    length = max(1, max(len(row.ids) for row in rows))
    shape = (len(rows), length)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    slots = torch.full(shape, -1)
    seen = torch.zeros(shape, dtype=torch.long)
    media: list[MediaPart] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        size = len(row.ids)
        ids[index, :size] = torch.tensor(row.ids, dtype=torch.long)
        labels[index, :size] = torch.tensor(row.labels, dtype=torch.long)
        mask[index, :size] = True
        own = torch.tensor(row.slots, dtype=torch.long)
        slots[index, :size] = torch.where(own >= 0, own + len(media) * media_tokens, own)
        seen[index, :size] = torch.tensor(row.seen, dtype=torch.long)
        seen[index, size:] = row.seen[-1] if row.seen else 0
        media.extend(row.media)
        owners.extend([index] * len(row.media))
    return TokenBatch(ids, labels, mask, slots, seen, torch.tensor(owners, dtype=torch.long), tuple(media))


def tokenize(sentences: Sequence[Sentence], tokenizer: Tokenizer, layout: Layout) -> TokenBatch:
    """Sentences as one right-padded batch."""
    rows = [tokenize_row(sentence, tokenizer, layout) for sentence in sentences]
    return collate(rows, pad_id=tokenizer.pad_id, media_tokens=layout.media_tokens)
