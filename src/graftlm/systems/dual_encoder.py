"""Learning Transferable Visual Models From Natural Language Supervision.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever. ICML 2021.
arXiv:2103.00020

A picture and a text are mapped into one space, where the right pairs of a batch are to be nearer than all others. Here
both encoders are frozen and only two small heads and the temperature are trained, so an epoch takes seconds; it has no
language model, and serves as a retrieval baseline and as a scorer of texts for pictures.

Differences from the paper:
- Both encoders are frozen (an ImageNet network and a sentence encoder) and unlike each other; the heads are linear maps
  with an optional hidden layer.
- Captions of one photo in a batch are no negatives of each other.
- A text is the sentence's text parts joined; a query of pictures and words, which the paper leaves open, is the mean
  of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.data.sentence import MediaPart, Part, Sentence, Text
from graftlm.encoders.base import Encoder, weights_fingerprint
from graftlm.errors import ConfigError, DataError
from graftlm.losses import gather, info_nce
from graftlm.systems.base import Parts, PartsConfig, System, content_keys, embed_in_batches

T = TypeVar("T")
_ROWS_AT_ONCE = 256


class DualEncoderConfig(PartsConfig):
    """What is learnt over the two frozen encoders."""

    encoder: str = Field("efficientnet-lite0", description="name, hub id or local path of the encoder")
    text_encoder: str = Field("minilm-l6", description="name of the frozen encoder of texts")
    shared_dim: int = Field(256, ge=1, le=4096, description="q, width of the shared space")
    hidden_dim: int = Field(0, ge=0, description="width of each head's hidden layer; 0: a linear map (§2.3)")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the encoders' vectors and the hidden layer, fraction")
    temperature: float = Field(0.07, gt=0, le=1, description="at the start; it is learnt (§2.5: 0.07)")


class DualEncoder(System):
    """Frozen encoders -> one head each -> unit vectors that are compared by their dot product."""

    name = "dual_encoder"
    Config = DualEncoderConfig
    config: DualEncoderConfig

    def __init__(self, config: DualEncoderConfig, parts: Parts, media_head: nn.Module, text_head: nn.Module) -> None:
        super().__init__(config, parts)
        self.media_head = media_head
        self.text_head = text_head
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.shared_dim = config.shared_dim
        self.modality = next(modality for modality in parts.encoders if modality != "text")

    @classmethod
    def build(cls, config: DualEncoderConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError unless there is an encoder of texts and one of something else."""
        others = [encoder for modality, encoder in parts.encoders.items() if modality != "text"]
        if "text" not in parts.encoders or len(others) != 1:
            found = ", ".join(parts.encoders) or "none"
            raise ConfigError(f"dual_encoder: expected an encoder of texts and one of media, found {found}; set both")
        heads = [_head(encoder.dim, config) for encoder in (others[0], parts.encoders["text"])]
        return cls(config, Parts(None, parts.encoders), *heads)

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """The contrastive loss of each sentence's medium and words against those of the whole batch."""
        media = [self._medium(sentence) for sentence in sentences]
        words = [_words(sentence) for sentence in sentences]
        left, right, photos = (
            self._map_media(media),
            self._map_texts(words),
            content_keys(media).to(self.log_scale.device),
        )
        if self.training:
            left, right, photos = gather(left, right, photos)
        return {"contrastive": info_nce(left, right, self.log_scale, photos)}

    def length(self, sentence: Sentence) -> tuple[int, int]:
        """One position and one target: every row of a batch costs the same."""
        return 1, 1

    def perceived(self, sentence: Sentence) -> tuple[Part, ...]:
        """Media as they are, words joined as they are compared."""
        return (*(part for part in sentence.media() if not part.target), _words(sentence))

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        """Unit vectors of media: (N, q) float32 on the CPU."""
        return self._units(media, self._map_media)

    @torch.no_grad()
    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        """Unit vectors of queries: (B, q) float32 on the CPU. With words and media, the mean of both.

        Raises: DataError for a sentence without either.
        """
        total = torch.zeros(len(sentences), self.shared_dim)
        texts = {row: words for row, sentence in enumerate(sentences) if (words := _words(sentence)).content.strip()}
        total[list(texts)] = self._units(list(texts.values()), self._map_texts)
        shown = [[part for part in sentence.media() if not part.target] for sentence in sentences]
        vectors = self.embed_media([part for media in shown for part in media])
        for row, own in enumerate(torch.split(vectors, [len(media) for media in shown])):
            if not len(own) and row not in texts:
                raise DataError(
                    f"dual_encoder: expected words or a picture in query {row}, found neither; say what is sought"
                )
            total[row] += own.mean(0) if len(own) else 0.0
        return F.normalize(total, dim=-1)

    def retrieval_fingerprint(self) -> str:
        """Digest of the media encoder and its head."""
        return weights_fingerprint(self.media_head.state_dict(), {"encoder": self._encoder(self.modality).fingerprint})

    def _units(self, items: Sequence[T], mapped: Callable[[list[T]], Tensor]) -> Tensor:
        """Unit vectors of any number of items."""
        vectors = embed_in_batches(items, mapped, self.shared_dim, lambda _: 0, size=_ROWS_AT_ONCE)
        return F.normalize(vectors, dim=-1)

    def _medium(self, sentence: Sentence) -> MediaPart:
        media = sentence.media()
        if len(media) != 1 or type(media[0]).__name__.lower() != self.modality:
            found = ", ".join(type(part).__name__.lower() for part in media) or "none"
            raise DataError(
                f"dual_encoder: expected one {self.modality} in each sentence, found {found}; check data.train"
            )
        return media[0]

    def _map_media(self, media: Sequence[MediaPart]) -> Tensor:
        for part in media:
            if type(part).__name__.lower() != self.modality:
                found = type(part).__name__.lower()
                raise DataError(f"dual_encoder: expected parts of type {self.modality}, found one of type {found}")
        return self._map(self.modality, media, self.media_head)

    def _map_texts(self, texts: Sequence[Text]) -> Tensor:
        return self._map("text", texts, self.text_head)

    def _map(self, modality: str, parts: Sequence[Part], head: nn.Module) -> Tensor:
        pooled = self._encoder(modality).pool(parts).to(self.log_scale)  # (N, Dv)
        mapped: Tensor = head(pooled)
        return mapped  # (N, q)

    def _encoder(self, modality: str) -> Encoder:
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder


def _head(in_dim: int, config: DualEncoderConfig) -> nn.Sequential:
    """An encoder's vectors, whatever their scale, into the shared space."""
    if not config.hidden_dim:
        return nn.Sequential(nn.LayerNorm(in_dim), nn.Dropout(config.dropout), nn.Linear(in_dim, config.shared_dim))
    return nn.Sequential(
        nn.LayerNorm(in_dim),
        nn.Dropout(config.dropout),
        nn.Linear(in_dim, config.hidden_dim),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden_dim, config.shared_dim),
    )


def _words(sentence: Sentence) -> Text:
    """The words of a sentence as one text, single spaces between its parts."""
    parts = [part.content.strip() for part in sentence if isinstance(part, Text)]
    return Text(" ".join(part for part in parts if part))
