"""Answers that hold pictures: words are written until the model asks for a picture, which is then looked up.

FROMAGe §3.3 (arXiv:2301.13823). All rows of a batch go round together: decode, search, put the pictures in, go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from graftlm.data.gallery import Gallery
from graftlm.data.media import content_hash
from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import ConfigError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.decode import Decoding, TokenBias, decode

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Pictures:
    """When an answer shows pictures, and which.

    Attributes:
        bias: added to the logit of [RET]; above 0 pictures come more readily
        outright: where nothing is drawn, [RET] has to be likelier than all words together; False = than each of them,
            as in the paper, which shows more pictures the less certain the first word is
        factor: the logit is multiplied with it, as in the paper: above 1 a negative logit grows less likely
        compat: as in GILL's released code, a `factor` above 1 multiplies the absolute value of the logit
        threshold: a picture below this score, from -1 to 1, is not shown
        most: pictures per turn; per_token: pictures per [RET]
        feed_back: whether the model sees the pictures it has shown; they are parts of the answer either way

    Raises: ConfigError for a value out of range.
    """

    bias: float = 0.0
    outright: bool = True
    factor: float = 1.0
    compat: bool = False
    threshold: float = -1.0
    most: int = 1
    per_token: int = 1
    feed_back: bool = True

    def __post_init__(self) -> None:
        for name, least in (("most", 0), ("per_token", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"pictures: expected {name} to be {least} or more, found {getattr(self, name)}")

    def decoding(self, decoding: Decoding, ids: Sequence[int]) -> Decoding:
        """The same decoding, ended by the first of the retrieval tokens `ids`; the others are never written."""
        if not self.most:
            return forbid(decoding, ids)
        changed = forbid(decoding, ids[1:])
        outright = self.outright and decoding.temperature == 0
        biased = TokenBias(ids[0], self.bias, self.factor, self.compat and self.factor > 1, outright)
        return replace(changed, biases=(*changed.biases, biased), end_ids=(*changed.end_ids, ids[0]))


class Finder(Protocol):
    """What is needed of a system here."""

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """Sentences laid out for the language model."""

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        """Unit vectors (B, q) of what is sought."""


def forbid(decoding: Decoding, ids: Sequence[int]) -> Decoding:
    """The same decoding in which the tokens are never written."""
    return replace(decoding, biases=(*decoding.biases, *(TokenBias(token, _NEVER) for token in ids)))


@dataclass(slots=True)
class _Turn:
    """One answer that is being written; `banned`: content hashes of the pictures already in the dialogue."""

    prompt: Sentence
    banned: set[str]
    parts: list[Part] = field(default_factory=list)
    shown: int = 0

    def context(self, *, feed_back: bool) -> Sentence:
        """What the model reads next: an answer to plain text goes on as plain text, one in a dialogue as its turn."""
        has_roles = any(part.role is not None for part in self.prompt)
        own = [part if has_roles else replace(part, role=None) for part in self.parts]
        earlier = [part for part in self.prompt if feed_back or not _is_answer(part)]
        return Sentence((*earlier, *(part for part in own if feed_back or not isinstance(part, Image))))

    def query(self, *, feed_back: bool) -> Sentence:
        """What is sought."""
        context = self.context(feed_back=feed_back)
        has_roles = any(part.role is not None for part in context)
        return Sentence((*context, Image.sought("assistant" if has_roles else None)))


@torch.no_grad()
def answer_with_pictures(
    finder: Finder,
    lm: LanguageModel,
    prompts: Sequence[Sentence],
    decoding: Decoding,
    pictures: Pictures,
    gallery: Gallery,
    ids: Sequence[int],
) -> list[Sentence]:
    """An answer of text and pictures to every prompt.

    `decoding.max_tokens` counts for every stretch of words between pictures; `ids`: the retrieval tokens of `lm`.
    """
    turns = [_Turn(prompt, _shown_in(prompt)) for prompt in prompts]
    going, changed = list(turns), pictures.decoding(decoding, ids)
    while going:
        asking = _write(finder, lm, going, changed, pictures)
        going = [turn for turn in _search(finder, asking, pictures, gallery) if turn.shown < pictures.most]
    return [Sentence(tuple(turn.parts) or (Text("", role="assistant"),)) for turn in turns]


def _write(
    finder: Finder, lm: LanguageModel, turns: list[_Turn], decoding: Decoding, pictures: Pictures
) -> list[_Turn]:
    """Writes words for every turn; returns the turns that ask for a picture."""
    inputs = finder.inputs([_continued(turn.context(feed_back=pictures.feed_back)) for turn in turns])
    asking = []
    for turn, (best, *_) in zip(turns, decode(lm, inputs, decoding), strict=True):
        if best.text:
            turn.parts.append(Text(best.text, role="assistant"))
        if best.ids[-1] in decoding.end_ids:
            asking.append(turn)
    return asking


def _search(finder: Finder, turns: list[_Turn], pictures: Pictures, gallery: Gallery) -> list[_Turn]:
    """Puts the best allowed pictures into every turn; returns the turns that got one."""
    if not turns:
        return []
    vectors = finder.embed_queries([turn.query(feed_back=pictures.feed_back) for turn in turns]).numpy()
    found = gallery.search(vectors, pictures.per_token, [turn.banned for turn in turns])
    served = []
    for turn, hits in zip(turns, found, strict=True):
        good = [hit for hit in hits if hit.score >= pictures.threshold][: pictures.most - turn.shown]
        turn.parts.extend(replace(hit.image, target=False, role="assistant") for hit in good)
        turn.banned.update(hit.key for hit in good)
        turn.shown += len(good)
        if good:
            served.append(turn)
    return served


def _continued(sentence: Sentence) -> Sentence:
    """A dialogue whose last turn is the assistant's goes on in that turn: an empty target keeps it open."""
    if sentence.parts and sentence.parts[-1].role == "assistant":
        return Sentence((*sentence.parts, Text("", target=True, role="assistant")))
    return sentence


def _shown_in(prompt: Sentence) -> set[str]:
    return {content_hash(part) for part in prompt if isinstance(part, Image) and not part.is_sought}


def _is_answer(part: Part) -> bool:
    return isinstance(part, Image) and part.role == "assistant"
