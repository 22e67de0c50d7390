"""From sentences to padded token ids, with labels and the slots that media fill.

Segments are tokenised one by one, so a label's place is exact and no marker string exists: text that contains
"<image>" is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from graftlm.data.chat import Segment, segments
from graftlm.data.sentence import Filled, Image, LabelWord, MediaPart, Sentence
from graftlm.data.shortening import End, kept_lengths, longest_word, shortened, shortens
from graftlm.errors import DataError, ShapeError

if TYPE_CHECKING:
    from graftlm.lm.base import Tokenizer

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Layout:
    """How one system lays a sentence out in positions.

    Attributes:
        media_tokens: K, positions a media item takes among the embeddings; 0 where media enter elsewhere
        bos: where the LM's BOS goes: before everything, after the leading media, before every text, or nowhere
        eos: whether a closing target is followed by EOS, which is then a target too
        max_length: longest row in positions; a longer one loses tokens of the slots that its template lets shorten, and
            then the end of its target, before tokens that close the row; a prompt that is still longer is refused
        shorten: where a slot is cut, at its end or at its start
        mask_id: the one token that stands for the word of a class, whatever its length, in a language model that looks
            both ways; the row is then closed with EOS, which is no target. None: words are written from left to right,
            and what follows the word of the class is left out
        retrieval_ids: what a target `Image` becomes, the first of them to be predicted ([RET] of FROMAGe); empty
            where pictures cannot be retrieved
        bos_target: whether BOS is predicted too (FROMAGe's released code)
        media_id: the token that marks a media item which takes no slot (<image> of Flamingo); None: none does
        chunk_end_id: the token that closes every chunk, a run of media with the words that follow it, and the words
            before the first (<EOC> of Flamingo); it is a target where the words are. None: none does; nor in a
            dialogue, whose turns the chat template closes
    """

    media_tokens: int = 0
    bos: Literal["start", "after_media", "each_text", "none"] = "start"
    eos: bool = True
    max_length: int = 1024
    retrieval_ids: tuple[int, ...] = ()
    bos_target: bool = False
    media_id: int | None = None
    chunk_end_id: int | None = None
    shorten: End = "end"
    mask_id: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sentence as ids; `slots` holds -1 for text and the running soft-token number for media."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    media: tuple[MediaPart, ...] = ()
    retrieval: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, target: bool, seen: int) -> None:
        """Appends text."""
        self.ids.extend(ids)
        self.labels.extend(ids if target else [IGNORED] * len(ids))
        self.slots.extend([-1] * len(ids))
        self.seen.extend([seen] * len(ids))
        self.retrieval.extend([False] * len(ids))

    def add_mask(self, mask_id: int, labels: Sequence[int], *, seen: int) -> None:
        """Appends one masked position for each label."""
        self.add([mask_id] * len(labels), target=False, seen=seen)
        self.labels[len(self.labels) - len(labels) :] = labels

    def add_retrieval(self, ids: Sequence[int], *, seen: int) -> None:
        """Appends the tokens of a picture that is to be retrieved; the first is a target, the others follow it."""
        self.add(ids, target=False, seen=seen)
        self.labels[-len(ids)] = ids[0]
        self.retrieval[-len(ids) :] = [True] * len(ids)

    def add_media(self, first_slot: int, count: int, *, pad_id: int, seen: int) -> None:
        """Appends the positions of one media item."""
        self.ids.extend([pad_id] * count)
        self.labels.extend([IGNORED] * count)
        self.slots.extend(range(first_slot, first_slot + count))
        self.seen.extend([seen] * count)
        self.retrieval.extend([False] * count)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sentences as one right-padded batch.

    Shapes:
        ids, labels: (B, L) long; labels are -100 where nothing is to be predicted, and are not shifted
        mask: (B, L) bool
        slots: (B, L) long, -1 for text, else the index into the (N * K) soft tokens of the batch
        seen: (B, L) long, media items of this row at or before the position
        rows: (N,) long, the row of each media item
        retrieval: (B, L) bool, where the tokens of a picture to be retrieved stand
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    slots: Tensor
    seen: Tensor
    rows: Tensor
    retrieval: Tensor
    media: tuple[MediaPart, ...]

    def closing(self, count: int) -> Tensor:
        """Where the retrieval tokens stand that close a row: (B, L) bool, the last `count` positions of each."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return self.retrieval & (places >= self.mask.sum(dim=1, keepdim=True) - count)


def tokenize_row(sentence: Sentence, tokenizer: Tokenizer, layout: Layout) -> Row:
    """One sentence as ids.

    Raises: ShapeError when its media or its prompt exceed `layout.max_length`, or a task's sentence does after all that
        may go is gone; DataError when a picture is to be retrieved by a system that cannot, or a task's slot stands
        after the word of the class, where a causal language model does not look.
    """
    parts = segments(sentence, tokenizer)
    word = next((place for place, part in enumerate(parts) if _is_class(part)), None)
    if word is not None and layout.mask_id is None:
        _check_causal(parts[word + 1 :])
        parts = parts[: word + 1]
    row = _row(parts, tokenizer, layout, {})
    room = layout.max_length - _spare(parts, tokenizer, layout)
    if len(row.ids) > room and any(map(shortens, parts)):
        row = _row(parts, tokenizer, layout, _kept(parts, tokenizer, len(row.ids) - room))
    if word is not None and len(row.ids) > room:
        raise ShapeError(
            f"a sentence of a task takes {len(row.ids)} positions and does not fit into {room}, though all that its "
            "template lets shorten is gone; list more slots under 'shorten', or use a larger max_length"
        )
    return _cut(row, layout)


def _row(parts: Sequence[Segment | MediaPart], tokenizer: Tokenizer, layout: Layout, kept: Mapping[int, int]) -> Row:
    """Parts as ids, of which some keep only so many tokens."""
    row = Row(media=tuple(part for part in parts if not isinstance(part, Segment) and not _is_retrieved(part)))
    seen = 0
    bos = [] if _starts_with_bos(parts, tokenizer) else _start_ids(tokenizer, layout)
    started = layout.bos in ("start", "none")
    if layout.bos == "start":
        row.add(bos, target=False, seen=0)
    ends, said = _chunk_end(parts, layout), None
    for index, part in enumerate(parts):
        if not isinstance(part, Segment) and not _is_retrieved(part):
            if said is not None:
                row.add(ends, target=said.target, seen=seen)
            seen, said = seen + 1, None
            row.add([] if layout.media_id is None else [layout.media_id], target=False, seen=seen)
            row.add_media((seen - 1) * layout.media_tokens, layout.media_tokens, pad_id=tokenizer.pad_id, seen=seen)
            continue
        if not started or (layout.bos == "each_text" and isinstance(part, Segment) and not part.template):
            row.add(bos, target=layout.bos_target, seen=seen)
            started = True
        if not isinstance(part, Segment):
            row.add_retrieval(_retrieval_ids(layout), seen=seen)
            continue
        following = parts[index + 1] if index + 1 < len(parts) else None
        ids = _encode(part, following, tokenizer)
        _add_text(row, part, shortened(ids, kept.get(index, len(ids)), layout.shorten), layout, seen)
        said = part
        if part.target and following is None and layout.mask_id is None and not _is_class(part):
            row.add([*ends, *([tokenizer.eos_id] if layout.eos else [])], target=True, seen=seen)
    if not started:
        row.add(bos, target=False, seen=seen)
    if layout.mask_id is not None:
        row.add([tokenizer.eos_id], target=False, seen=seen)
    return row


def _add_text(row: Row, part: Segment, ids: list[int], layout: Layout, seen: int) -> None:
    """Words, or the masks that stand for them: one for the word of a class, which must not tell how long it is."""
    if part.target and layout.mask_id is not None:
        row.add_mask(layout.mask_id, ids[:1] if _is_class(part) else ids, seen=seen)
    else:
        row.add(ids, target=part.target, seen=seen)


def _is_class(part: Segment | MediaPart) -> bool:
    """Whether it is the word of a class that is to be told."""
    return isinstance(part, Segment) and part.target and isinstance(part.text, LabelWord)


def _check_causal(after: Sequence[Segment | MediaPart]) -> None:
    """Raises: DataError when a row's own words stand after the class."""
    if any(not isinstance(part, Segment) or isinstance(part.text, Filled) for part in after):
        raise DataError(
            "expected a template whose mask comes last, for a language model that reads from left to right, found a "
            "slot after it; choose another template or a masked language model"
        )


def _spare(parts: Sequence[Segment | MediaPart], tokenizer: Tokenizer, layout: Layout) -> int:
    """Positions by which another class's word would be longer: what is cut must not tell which word it is."""
    if layout.mask_id is not None or not parts or not _is_class(parts[-1]):
        return 0
    last = parts[-1]
    assert isinstance(last, Segment)
    assert isinstance(last.text, LabelWord)
    return longest_word(last.text, tokenizer) - len(tokenizer.encode(last.text))


def _kept(parts: Sequence[Segment | MediaPart], tokenizer: Tokenizer, excess: int) -> dict[int, int]:
    """How many tokens the parts that shorten keep, by place."""
    places = [place for place, part in enumerate(parts) if shortens(part)]
    cut = [part for part in parts if isinstance(part, Segment) and shortens(part)]
    lengths = [len(tokenizer.encode(part.text)) for part in cut]
    return dict(zip(places, kept_lengths(lengths, excess), strict=True))


def _is_retrieved(part: Segment | MediaPart) -> bool:
    return isinstance(part, Image) and part.target


def _chunk_end(parts: Sequence[Segment | MediaPart], layout: Layout) -> list[int]:
    if layout.chunk_end_id is None or any(isinstance(part, Segment) and part.template for part in parts):
        return []
    return [layout.chunk_end_id]


def _retrieval_ids(layout: Layout) -> tuple[int, ...]:
    if not layout.retrieval_ids:
        raise DataError(
            "expected text to be written, found a picture to be retrieved (an image with target: true); this system "
            "cannot retrieve: choose one that does, such as fromage"
        )
    return layout.retrieval_ids


def _encode(part: Segment, following: Segment | MediaPart | None, tokenizer: Tokenizer) -> list[int]:
    """Ids of text; before a picture to be retrieved it has no closing space, as in a caption."""
    if part.template:
        return tokenizer.encode_template(part.text)
    closes = following is not None and not isinstance(following, Segment) and _is_retrieved(following)
    return tokenizer.encode(part.text.rstrip() if closes else part.text)


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
    closing = len(layout.retrieval_ids) if row.retrieval[-1] else 0
    if not closing:
        _check_prompt(row, layout.max_length)
    kept = [*range(layout.max_length - closing), *range(len(row.ids) - closing, len(row.ids))]
    columns = (row.ids, row.labels, row.slots, row.seen)
    ids, labels, slots, seen = ([column[place] for place in kept] for column in columns)
    return Row(ids, labels, slots, seen, row.media, [row.retrieval[place] for place in kept])


def _check_prompt(row: Row, most: int) -> None:
    """Raises: ShapeError unless all that is cut is the end of a target whose beginning stays."""
    if all(label != IGNORED for label in row.labels[most - 1 :]):
        return
    places = [place for place, label in enumerate(row.labels) if label != IGNORED]
    before = [place for place in range(len(row.ids)) if row.labels[place] == IGNORED and place < max(places, default=0)]
    length = before[-1] + 1 if before else len(row.ids)
    raise ShapeError(
        f"a prompt of {length} positions does not fit into {most}{' with an answer behind it' if places else ''}; "
        "use shorter text, fewer worked examples or a larger max_length, where the language model has room for it"
    )


def collate(rows: Sequence[Row], *, pad_id: int, media_tokens: int) -> TokenBatch:
    """Pads rows on the right and numbers their soft tokens through the batch."""
    length = max(1, max(len(row.ids) for row in rows))
    shape = (len(rows), length)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    slots = torch.full(shape, -1)
    seen = torch.zeros(shape, dtype=torch.long)
    retrieval = torch.zeros(shape, dtype=torch.bool)
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
        retrieval[index, :size] = torch.tensor(row.retrieval, dtype=torch.bool)
        seen[index, size:] = row.seen[-1] if row.seen else 0
        media.extend(row.media)
        owners.extend([index] * len(row.media))
    rows_of_media = torch.tensor(owners, dtype=torch.long)
    return TokenBatch(ids, labels, mask, slots, seen, rows_of_media, retrieval, tuple(media))


def tokenize(sentences: Sequence[Sentence], tokenizer: Tokenizer, layout: Layout) -> TokenBatch:
    """Sentences as one right-padded batch."""
    rows = [tokenize_row(sentence, tokenizer, layout) for sentence in sentences]
    return collate(rows, pad_id=tokenizer.pad_id, media_tokens=layout.media_tokens)
