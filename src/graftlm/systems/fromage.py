"""Grounding Language Models to Images for Multimodal Inputs and Outputs (FROMAGe).

Koh, Salakhutdinov, Fried. ICML 2023. arXiv:2301.13823

A linear map turns pictures into words a frozen language model can read. One trained token, [RET], turns what it has
read or written into a query for pictures, so it answers with text and pictures.

Differences from the paper:
- The text-only loss that teaches the model to write [RET] is a loss of its own, "text"; the paper's formula omits it.
- Captions end with a trained EOS, captions of one photo in a batch are no negatives of each other, and under several
  processes the gradient is that of one; in ``compat``, no_eos, repeated_photos and local_gradient undo it. So does
  free_norm with [RET]'s norm. Released code: bos_label (BOS after the picture is predicted), second_bos (in each of two
  joined captions), bos_each_text (in every text of a prompt), halved (weight of the contrastive losses).
- Ours: ``mapper: grid`` and ``prefix``, ``dropout``, ``head_hidden``, ``word_layers``, ``caption_fraction`` and
  ``ret_tokens``: several have output vectors of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.connectors.base import Connector
from graftlm.connectors.grid import GridMap
from graftlm.connectors.linear import Linear
from graftlm.data.gallery import Gallery
from graftlm.data.retrieval import as_query, by_use, every_nth, in_pairs
from graftlm.data.sentence import Image, MediaPart, Sentence
from graftlm.data.tokenize import Layout, TokenBatch
from graftlm.encoders.base import weights_fingerprint
from graftlm.errors import ConfigError
from graftlm.lm.base import LMInputs
from graftlm.lm.closing import FEW_SCORED, Layers, read_closing
from graftlm.lm.compose import compose_items
from graftlm.lm.decode import Decoding
from graftlm.lm.extended import ExtendedLM
from graftlm.lm.pictures import Pictures, answer_with_pictures, forbid
from graftlm.losses import MAX_LOG_SCALE, contrastive, gather
from graftlm.nn.extra_tokens import NormPolicy
from graftlm.nn.retrieval_head import PictureHead, QueryHead
from graftlm.systems.base import Parts, System, SystemConfig, content_keys, embed_in_batches

Undone = Literal["no_eos", "repeated_photos", "local_gradient", "free_norm"]
Compat = Undone | Literal["bos_label", "second_bos", "bos_each_text", "halved"]


class FROMAGeConfig(SystemConfig):
    """The paper's choices, and ours beside them."""

    mapper: Literal["linear", "grid", "prefix"] = Field("linear", description="§3.1; grid, and prefix of it, are ours")
    num_tokens: int = Field(1, ge=1, le=197, description="k visual tokens (§3.1: 1); of a grid 1 + cells per edge²")
    rank: int = Field(256, ge=1, description="bottleneck of the grid and prefix mappers")
    dropout: float = Field(0.0, ge=0, lt=1, description="of heads that read words or the grid; half of it in mappers")
    shared_dim: int = Field(256, ge=1, description="q, width of the retrieval space (§3.1: 256)")
    text_layers: tuple[int, ...] = Field((-1,), min_length=1, description="hidden layers of [RET] that are read")
    word_layers: tuple[int, ...] = Field((), description="hidden layers of the query's own words; none: [RET] alone")
    ret_tokens: int = Field(1, ge=1, le=16, description="retrieval tokens; one is written, the others follow it")
    head_hidden: int = Field(0, ge=0, description="hidden layer of the picture head, which then reads the grid too")
    concat_probability: float = Field(0.5, ge=0, le=1, description="of joining captions in pairs (§3.2)")
    caption_fraction: float = Field(1.0, gt=0, le=1, description="part of a training batch that is captioned")
    compat: tuple[Compat, ...] = Field((), description="differences of the released code, by name")


class FROMAGe(System):
    """Pictures -> visual tokens; [RET] and pictures -> one space."""

    name = "fromage"
    Config = FROMAGeConfig
    config: FROMAGeConfig
    lm: ExtendedLM

    def __init__(self, config: FROMAGeConfig, parts: Parts, connector: Connector) -> None:
        super().__init__(config, parts)
        self.connector = connector
        self.shared_dim = width = config.shared_dim
        sources, words = config.ret_tokens * len(config.text_layers), len(config.word_layers)
        drop = config.dropout
        self.text_head = QueryHead(parts.lm.dim, width, sources=sources, word_sources=words, dropout=drop)
        self.image_head = PictureHead(parts.encoder("image").dim, width, config.head_hidden, drop)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(0.07)))
        self.lm.tokens.requires_grad_(True)

    @classmethod
    def build(cls, config: FROMAGeConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError for a number of tokens or a probability that does not fit the mapper."""
        norm: NormPolicy = "free" if "free_norm" in config.compat else "mean"
        lm = ExtendedLM(parts.lm, config.ret_tokens, norm=norm, own_outputs=config.ret_tokens > 1)
        parts, dim = Parts(lm, parts.encoders), parts.encoder("image").dim
        if config.mapper == "linear":
            return cls(config, parts, Linear(dim, lm.dim, config.num_tokens))
        if config.mapper == "prefix" and config.concat_probability:
            raise ConfigError("system.concat_probability: a prefix has no order of pictures; set it to 0")
        width = lm.dim if config.mapper == "grid" else lm.prefix_geometry.token_dim
        mapper = GridMap.of_tokens(dim, width, config.num_tokens, rank=config.rank, dropout=config.dropout / 2)
        return cls(config, parts, mapper)

    @property
    def layout(self) -> Layout:
        """Visual tokens, BOS, words; a target picture is [RET]."""
        tokens, compat = 0 if self.config.mapper == "prefix" else self.connector.num_tokens, self.config.compat
        bos: Literal["each_text", "after_media"] = "each_text" if "bos_each_text" in compat else "after_media"
        eos, told = "no_eos" not in compat, "bos_label" in compat
        return Layout(tokens, bos, eos, retrieval_ids=self.lm.extra_ids, bos_target=told)

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """Pictures in their slots, or as a prefix of every layer."""
        return self._read(self.tokens(sentences))

    def _read(self, batch: TokenBatch) -> LMInputs:
        soft = self.connector(self.perceive(batch.media)) if batch.media else None  # (N, k, D or token_dim)
        return compose_items(self.lm, batch, soft, as_prefix=self.config.mapper == "prefix")

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Captioning, the text-only loss that teaches [RET], and both contrastive directions."""
        pairs, written, alone = by_use(sentences)
        return {"caption": self._caption([*alone, *self._part(written)]), **self._retrieve(pairs)}

    def _part(self, sentences: Sequence[Sentence]) -> Sequence[Sentence]:
        """The part of a training batch that is captioned, joined in pairs with the paper's probability."""
        config = self.config
        kept = every_nth(sentences, config.caption_fraction) if self.training else sentences
        joins = self.training and config.concat_probability and float(torch.rand(())) < config.concat_probability
        return in_pairs(kept) if joins else kept

    def _caption(self, sentences: Sequence[Sentence]) -> Tensor:
        if not sentences:
            return self.log_scale * 0.0
        layout = replace(self.layout, bos="each_text") if "second_bos" in self.config.compat else None
        return self.target_loss(self._read(self.tokens(sentences, layout)))

    def _retrieve(self, pairs: Sequence[tuple[Sentence, Image]]) -> dict[str, Tensor]:
        if not pairs:
            return dict.fromkeys(("text", "text_to_image", "image_to_text"), self.log_scale * 0.0)
        compat = self.config.compat
        scored = FEW_SCORED if self.training and self.config.caption_fraction < 1 else 1.0
        text, loss = self._queries([query for query, _ in pairs], scored)
        pictures = self._pictures([image for _, image in pairs])
        keys = content_keys([image for _, image in pairs]).to(text.device)
        if self.training:
            text, pictures, keys = gather(text, pictures, keys, exact="local_gradient" not in compat)
        same = None if "repeated_photos" in compat else keys
        forth, back = contrastive(text, pictures, self.log_scale, same)
        forth, back = (forth / 2, back / 2) if "halved" in compat else (forth, back)
        return {"text": loss, "text_to_image": forth, "image_to_text": back}

    def _queries(self, sentences: Sequence[Sentence], scored: float) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, q) of sentences that close with [RET], and the loss of the targets of a part of them."""
        batch, config = self.tokens(sentences), self.config
        layers, inputs = Layers(config.text_layers, config.word_layers), self._read(batch)
        found = read_closing(self.lm, batch, inputs, config.ret_tokens, layers, scored=scored)
        return F.normalize(self.text_head(found.states, found.words, found.owners), dim=-1), found.loss

    def _pictures(self, images: Sequence[MediaPart]) -> Tensor:
        """Unit vectors (N, q) of pictures."""
        seen = self.perceive(images)
        return F.normalize(self.image_head(seen.pooled, seen.tokens, seen.mask), dim=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Gives [RET] its norm back and keeps the temperature in its bounds."""
        self.lm.tokens.renormalise()
        self.log_scale.clamp_(max=MAX_LOG_SCALE)

    def embed_media(self, media: Sequence[MediaPart]) -> Tensor:
        """Unit vectors of pictures: (N, q) float32 on the CPU."""
        return embed_in_batches(media, self._pictures, self.shared_dim, lambda _: 0)

    def embed_queries(self, sentences: Sequence[Sentence]) -> Tensor:
        """Unit vectors of what is sought: (B, q) float32 on the CPU."""
        queries = [as_query(sentence) for sentence in sentences]
        return embed_in_batches(queries, lambda q: self._queries(q, 0.0)[0], self.shared_dim, lambda q: len(q.text()))

    def retrieval_fingerprint(self) -> str:
        """Hex digest of the encoder and the image head."""
        return weights_fingerprint(self.image_head.state_dict(), {"encoder": self.fingerprints()["encoders.image"]})

    def respond(
        self,
        sentences: Sequence[Sentence],
        decoding: Decoding | None = None,
        *,
        gallery: Gallery | None = None,
        pictures: Pictures | None = None,
    ) -> list[Sentence]:
        """Answers of text, and of pictures from a gallery where one is given."""
        if gallery is None:
            return super().respond(sentences, decoding)
        asked, how, when = [one.prompt() for one in sentences], decoding or Decoding(), pictures or Pictures()
        return answer_with_pictures(self, self.lm, asked, how, when, gallery, self.lm.extra_ids)

    def decoding(self, decoding: Decoding) -> Decoding:
        """Without a gallery [RET] is never written."""
        return forbid(decoding, self.lm.extra_ids)
