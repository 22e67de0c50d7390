"""Dialogues in the language model's own words: its chat template, cut at the parts it wraps.

A sentence whose parts carry no role is plain text and passes through unchanged. One with roles is rendered by
the LM's template; what the template adds is trusted text (special tokens count), what a part says is not.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftlm.data.sentence import MediaPart, Role, Sentence, Text
from graftlm.errors import BackboneError

if TYPE_CHECKING:
    from graftlm.lm.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text. `template`: written by the chat template, so its special tokens count."""

    text: str
    target: bool = False
    template: bool = False


def segments(sentence: Sentence, tokenizer: Tokenizer) -> list[Segment | MediaPart]:
    """The sentence as text segments and media, in reading order.

    Raises: BackboneError when a dialogue is given to an LM without a chat template, or whose template drops, repeats or
        moves a turn.
    """
    if all(part.role is None for part in sentence):
        return [Segment(part.content, part.target) if isinstance(part, Text) else part for part in sentence]
    turns = _turns(sentence)
    nonce = _nonce(sentence)
    messages = [{"role": role, "content": f"{nonce}{index}{nonce}"} for index, (role, _) in enumerate(turns)]
    rendered = tokenizer.render_chat(messages, add_generation_prompt=turns[-1][0] != "assistant")
    pieces: list[Segment | MediaPart] = []
    rest = rendered
    for index, (role, parts) in enumerate(turns):
        before, found, rest = rest.partition(f"{nonce}{index}{nonce}")
        if not found or nonce in before:
            raise BackboneError(f"the chat template does not keep turn {index + 1} ({role}) in its place; leave it out")
        pieces.append(Segment(before, template=True))
        pieces.extend(Segment(part.content, part.target) if isinstance(part, Text) else part for part in parts)
    if nonce in rest:
        raise BackboneError("the chat template repeats a turn; choose another language model")
    if rest and not pieces[-1].target:
        pieces.append(Segment(rest, template=True))
    return [piece for piece in pieces if not isinstance(piece, Segment) or piece.text or piece.target]


def _turns(sentence: Sentence) -> list[tuple[Role, list[Text | MediaPart]]]:
    turns: list[tuple[Role, list[Text | MediaPart]]] = []
    for part in sentence:
        role: Role = part.role or ("assistant" if part.target else "user")
        if not turns or turns[-1][0] != role:
            turns.append((role, []))
        turns[-1][1].append(part)
    return turns


def _nonce(sentence: Sentence) -> str:
    text = sentence.text()
    while True:
        nonce = f"x{secrets.token_hex(8)}x"
        if nonce not in text:
            return nonce
