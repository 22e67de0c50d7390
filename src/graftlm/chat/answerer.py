"""A system's answer to a dialogue: written down in a format, cut to the context, streamed where it can be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from graftlm.chat.settings import Settings
from graftlm.data.dialogue import Format, latest, turns, written
from graftlm.data.gallery import Gallery, Hit, Vectors
from graftlm.data.media import content_hash
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.base import Encoder, weights_fingerprint
from graftlm.errors import BadSampleError, ShapeError, UsageError
from graftlm.features import CachedEncoder
from graftlm.lm.decode import stream
from graftlm.systems.base import System, answers_with_pictures

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said.

    Attributes:
        sentence: its words and pictures, of role assistant
        scores: of its pictures, in their order
        dropped: oldest turns that did not fit into the context
        missing: pictures of the dialogue whose files cannot be read any more
    """

    sentence: Sentence
    scores: tuple[float, ...] = ()
    dropped: int = 0
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class DialogueGallery:
    """A gallery as one dialogue sees it: without its own pictures, and without files that are gone or have changed.

    Attributes:
        banned: content hashes that are never given; scores: of what was given, by content hash
    """

    gallery: Gallery
    banned: Collection[str] = ()
    scores: dict[str, float] = field(default_factory=dict)

    def search(self, vectors: Vectors, count: int, exclude: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The best pictures for every query; see `Gallery.search`."""
        excluded = [{*self.banned, *keys} for keys in exclude or [()] * len(vectors)]
        for _ in range(_ROUNDS):
            found = self.gallery.search(vectors, count, excluded)
            gone = {hit.key for hits in found for hit in hits if not _is_there(hit)}
            if not gone:
                break
            excluded = [keys | gone for keys in excluded]
        kept = [[hit for hit in hits if hit.key not in gone] for hits in found]
        self.scores.update((hit.key, hit.score) for hits in kept for hit in hits)
        return kept


class Answerer:
    """A loaded graft that answers dialogues; what its encoders saw is kept in `features`.

    Raises: UsageError for a system that has no language model.
    """

    def __init__(self, system: System, features: Path | None = None) -> None:
        if not system.has_lm:
            raise UsageError(
                f"{system.name}: expected a graft that writes, found one that only compares pictures and words; "
                "search with `graft find`, or choose another graft"
            )
        self.system = system
        self.shows_pictures = answers_with_pictures(system)
        self._cached = {
            modality: CachedEncoder(encoder, features)
            for modality, encoder in system.encoders.items()
            if features is not None and isinstance(encoder, Encoder) and not _is_trained(encoder)
        }
        system.encoders.update(self._cached)

    @property
    def usual_format(self) -> Format:
        """Questions and answers for a system that answers with pictures, as FROMAGe's; captions for the others."""
        return "qa" if self.shows_pictures else "caption"

    def check(self, settings: Settings) -> None:
        """Raises: BackboneError when the language model has no chat template and one is wanted."""
        if settings.format == "chat":
            messages = [{"role": "user", "content": "x"}]
            self.system.lm.tokenizer.render_chat(messages, add_generation_prompt=True)

    def fingerprint(self) -> str:
        """Hex digest of what was trained and of every frozen part."""
        return weights_fingerprint(self.system.trainable_state(), {"system": self.system.name, **self._frozen()})

    @contextmanager
    def uncached(self) -> Iterator[System]:
        """The system with its own encoders: a folder of photos must not fill the cache of features."""
        self.system.encoders.update({modality: cached.encoder for modality, cached in self._cached.items()})
        try:
            yield self.system
        finally:
            self.system.encoders.update(self._cached)

    def answer(
        self,
        dialogue: Sentence,
        settings: Settings,
        gallery: Gallery | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """The answer to a dialogue that ends with the user's turn. `on_text` is told every piece of text, if it can be.

        Raises: ShapeError when the last turn alone does not fit; BadSampleError for a picture that cannot be decoded.
        """
        keys, missing = _content_hashes(dialogue)
        seen = dialogue
        if missing:
            seen = Sentence(tuple(part for part in dialogue if str(getattr(part, "source", "")) not in missing))
        has_pictures = gallery is not None and self.shows_pictures
        dropped = self._dropped(seen, settings, has_pictures)
        prompt = written(latest(seen, dropped), settings.format, feed_back=settings.feed_back)
        decoding = settings.decoding(len(turns(dialogue)))
        if has_pictures and gallery is not None:
            found = DialogueGallery(gallery, keys)
            system: Any = self.system
            (answer,) = system.respond([prompt], decoding, gallery=found, pictures=settings.pictures())
            scores = tuple(found.scores[content_hash(part)] for part in answer if isinstance(part, Image))
            return Answer(answer, scores, dropped, missing)
        if on_text is None:
            (answer,) = self.system.respond([prompt], decoding)
            return Answer(answer, (), dropped, missing)
        return Answer(self._stream(prompt, settings, len(turns(dialogue)), on_text), (), dropped, missing)

    def _stream(self, prompt: Sentence, settings: Settings, turn: int, on_text: Callable[[str], None]) -> Sentence:
        lm, decoding, pieces = self.system.lm, settings.decoding(turn), []
        with torch.no_grad():
            inputs = self.system.inputs([prompt])
        for piece in stream(lm, inputs, self.system.decoding(decoding)):
            pieces.append(piece)
            on_text(piece)
        return Sentence((Text("".join(pieces), role="assistant"),))

    def _dropped(self, dialogue: Sentence, settings: Settings, has_pictures: bool) -> int:
        """The fewest oldest turns without which the rest and an answer fit; the last turn always stays."""
        room = min(self.system.layout.max_length, self.system.lm.context_length)
        most = settings.most if has_pictures else 0
        wanted = settings.max_tokens * (1 + most) + most * self.system.layout.media_tokens
        limit = room - min(wanted, room // 2)

        def fits(dropped: int) -> bool:
            prompt = written(latest(dialogue, dropped), settings.format, feed_back=settings.feed_back)
            return self._num_positions(prompt) <= limit

        return bisect_left(range(len(turns(dialogue)) - 1), True, key=fits)

    @torch.no_grad()
    def _num_positions(self, prompt: Sentence) -> float:
        try:
            inputs = self.system.inputs([prompt])
        except ShapeError:
            return float("inf")
        return inputs.mask.shape[1] + (0 if inputs.prefix is None else inputs.prefix.mask.shape[1])

    def _frozen(self) -> dict[str, str]:
        return self.system.fingerprints()


def _content_hashes(dialogue: Sentence) -> tuple[set[str], tuple[str, ...]]:
    """Content hashes of a dialogue's pictures, and the paths of those that cannot be read."""
    keys: set[str] = set()
    missing: list[str] = []
    for part in dialogue:
        if isinstance(part, Image):
            try:
                keys.add(content_hash(part))
            except BadSampleError:
                missing.append(str(part.source))
    return keys, tuple(dict.fromkeys(missing))


def _is_there(hit: Hit) -> bool:
    try:
        return content_hash(hit.image) == hit.key
    except BadSampleError:
        return False


def _is_trained(encoder: Encoder) -> bool:
    return any(parameter.requires_grad for parameter in encoder.parameters())
