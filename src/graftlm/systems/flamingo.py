"""Flamingo: a Visual Language Model for Few-Shot Learning.

Alayrac, Donahue, Luc, Miech, Barr, Hasson, Lenc, Mensch, Millican, Reynolds, Ring, Rutherford, Cabi, Han, Gong,
Samangooei, Monteiro, Menick, Borgeaud, Brock, Nematzadeh, Sharifzadeh, Binkowski, Barreira, Vinyals, Zisserman,
Simonyan. NeurIPS 2022. arXiv:2204.14198

A resampler turns what a frozen encoder saw into a few vectors, and gated cross-attention blocks before the layers of a
frozen language model let every word read the latest picture before it. The gates start at zero, so that training begins
with the language model as it was; pictures may stand anywhere, which allows few-shot prompting.

Differences from the paper:
- <image> and <EOC> are trained tokens beside the frozen vocabulary, with output vectors; <image> is never written.
- A word that has no picture to read still goes through the dense layers, as in the paper, and so does plain text. Where
  the words of a page go with the next picture, the last have none.
- Weight decay is one number for all matrices, gates and tokens excepted; the paper's leaves the resampler out.
- ``variant`` open_flamingo: (i + 1) % every, heads of 64, GELU, no frame positions. idefics: RMSNorm and SwiGLU in the
  blocks, ReLU and heads of 96 in the resampler, queries and keys normalised. The latents are normalised at the end in
  all three, as both reimplementations do.
- ``width`` and ``dropout`` are ours: one width for everything inside the graft, in place of the language model's.
  So is ``gate: open``, which also begins as the language model was, and learns to see in a few minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from graftlm.connectors.perceiver import Perceiver
from graftlm.data.sentence import MediaPart, Sentence
from graftlm.data.tokenize import Layout, TokenBatch
from graftlm.encoders.base import Features
from graftlm.encoders.video import FrameEncoder
from graftlm.errors import ConfigError, DataError
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose, following_items, memory_of_items
from graftlm.lm.decode import Decoding
from graftlm.lm.extended import ExtendedLM
from graftlm.lm.pictures import forbid
from graftlm.lm.reading import Reading, read_media
from graftlm.nn.flamingo_variants import VARIANTS, VariantName
from graftlm.nn.gated_cross_attention import GatedCrossAttention, GateInit, GateSize
from graftlm.nn.resampler import PerceiverResampler
from graftlm.systems.base import Parts, System, SystemConfig, distinct

_SMALL_LATENTS = 0.02


class FlamingoConfig(SystemConfig):
    """The paper's choices (of Flamingo-9B where its models differ), and ours beside them."""

    variant: VariantName = Field("paper", description="norms, activations, heads, frame positions")
    every: int = Field(4, ge=1, description="a block before one in so many decoder layers (§3.1.2; Flamingo-9B: 4)")
    offset: int | None = Field(None, description="before layers i with i % every == offset % every; the variant's")
    num_latents: int = Field(64, ge=1, le=1024, description="vectors a picture or a film becomes (§3.1.1: 64)")
    depth: int = Field(6, ge=1, description="layers of the resampler (6)")
    heads: int = Field(16, ge=1, description="heads of resampler and blocks (16 in the resampler)")
    width: int = Field(0, ge=0, description="of resampler, attention and the blocks' dense layers; 0: the variant's")
    attends: Literal["latest", "all"] = Field("latest", description="pictures a word reads (§3.1.3: the latest)")
    gate: Literal["scalar", "vector", "open"] = Field(
        "scalar",
        description="one a branch, or a dimension, at 0; open (ours): at 1, on maps of zero, small latents",
    )
    chunk_end: bool = Field(True, description="<EOC> closes every chunk (§2.3); false: the language model's EOS")
    placement_probability: float = Field(
        0.5, ge=0, le=1, description="of the words of a page of several pictures going with the next one (0.5)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the encoder's vectors and every branch, fraction")


class Flamingo(System):
    """Pictures -> resampler -> memory, read by gated blocks before every n-th layer."""

    name = "flamingo"
    Config = FlamingoConfig
    config: FlamingoConfig
    lm: ExtendedLM

    def __init__(
        self, config: FlamingoConfig, parts: Parts, connector: Perceiver, blocks: Mapping[int, GatedCrossAttention]
    ) -> None:
        super().__init__(config, parts)
        self.connector = connector
        self.blocks = nn.ModuleDict({str(layer): block for layer, block in blocks.items()})
        self.lm.tokens.requires_grad_(True)
        self.lm.attach_cross_attention(blocks)

    @classmethod
    def build(cls, config: FlamingoConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError for heads that do not divide a width, or where no layer is chosen."""
        variant, encoder = VARIANTS[config.variant], parts.encoder("image")
        lm, width = ExtendedLM(parts.lm, 1 + config.chunk_end, norm="free"), config.width or encoder.dim
        for dim in variant.divided(encoder.dim, lm.hidden_dim, width=config.width):
            if dim % config.heads:
                raise ConfigError(f"system.heads: {config.heads} heads do not divide a width of {dim}; change either")
        init: GateInit = "open" if config.gate == "open" else "closed"
        geometry = variant.resampler(width, config.heads, width=config.width, dropout=config.dropout)
        resampler = PerceiverResampler(
            width,
            geometry,
            num_latents=config.num_latents,
            depth=config.depth,
            num_frames=variant.num_frames,
            latent_scale=_SMALL_LATENTS if init == "open" else 1.0,
        )
        size = encoder.num_positions
        connector = Perceiver(encoder.dim, width, resampler, positions_per_frame=size, dropout=config.dropout)
        geometry = variant.block(lm.hidden_dim, config.heads, width=config.width, dropout=config.dropout)
        layers = _layers(config, variant.offset, lm.num_layers)
        gate: GateSize = "vector" if config.gate == "vector" else "scalar"
        blocks = {layer: GatedCrossAttention(lm.hidden_dim, width, geometry, gate=gate, init=init) for layer in layers}
        encoders = {"video": FrameEncoder(encoder, variant.num_frames), **parts.encoders}
        return cls(config, Parts(lm, encoders), connector, blocks)

    @property
    def layout(self) -> Layout:
        """BOS; <image> where a picture stands; words; <EOC> behind the words of a picture; EOS."""
        image, *ends = self.lm.extra_ids
        chunk_end = ends[0] if ends else self.lm.tokenizer.eos_id
        return Layout(eos=bool(ends), media_id=image, chunk_end_id=chunk_end)

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """Words, and the pictures as a memory beside them."""
        batch = self.tokens(sentences)
        return self._read(batch, batch.seen)

    def _read(self, batch: TokenBatch, reads: Tensor) -> LMInputs:
        once, places = distinct(batch.media)
        latents = self._resample(once)[places]  # (N, K, W)
        memory = memory_of_items(latents, batch.rows, reads, earlier_too=self.config.attends == "all")
        return compose(self.lm, batch, memory=memory)

    def _resample(self, media: Sequence[MediaPart]) -> Tensor:
        """Latents (N, K, W) of pictures and films."""
        if not media:
            return self.connector.resampler.latents.new_zeros(0, self.connector.num_tokens, self.connector.out_dim)
        latents: Tensor = self.connector(self._perceive_all(media))
        return latents

    def _perceive_all(self, media: Sequence[MediaPart]) -> Features:
        """Features of media of any kind there is an encoder for."""
        kinds = list(dict.fromkeys(type(part) for part in media))
        order = [place for kind in kinds for place, part in enumerate(media) if type(part) is kind]
        seen = [self.perceive([part for part in media if type(part) is kind]) for kind in kinds]
        return Features.stack(seen)[torch.tensor(order).argsort()]

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Cross-entropy of every target text; in training the words of some pages go with the next picture."""
        batch = self.tokens(sentences)
        if not (self.training and self.config.placement_probability):
            return {"caption": self.target_loss(self._read(batch, batch.seen))}
        several = torch.bincount(batch.rows, minlength=len(sentences)) > 1
        drawn = torch.rand(len(sentences)).to(several.device) < self.config.placement_probability
        return {"caption": self.target_loss(self._read(batch, following_items(batch, several & drawn)))}

    def decoding(self, decoding: Decoding) -> Decoding:
        """<EOC> ends an answer; <image> is never written."""
        image, *ends = self.lm.extra_ids
        return replace(forbid(decoding, [image]), end_ids=(*decoding.end_ids, *ends))

    def figures(self) -> dict[str, float]:
        """How far the gates are open, by block: "gate_attention_04", "gate_dense_04"."""
        found: dict[str, float] = {}
        for layer, block in self.lm.blocks.items():
            assert isinstance(block, GatedCrossAttention)
            found[f"gate_attention_{layer:02}"], found[f"gate_dense_{layer:02}"] = block.gates()
        return found

    @torch.no_grad()
    def reading(self, sentences: Sequence[Sentence]) -> list[Reading]:
        """What every word reads: of which picture and of which positions. Raises: DataError without a picture."""
        batch = self.tokens(sentences)
        if not batch.media:
            raise DataError("a reading: expected a sentence with a picture, found none; there is nothing to read")
        shares = self.connector.attention(self._perceive_all(batch.media))  # (N, K, S)
        inputs = self._read(batch, batch.seen)
        return read_media(self.lm, batch, inputs, shares, self.connector.positions_per_frame)


def _layers(config: FlamingoConfig, offset: int, count: int) -> range:
    start = (offset if config.offset is None else config.offset) % config.every
    if start >= count:
        raise ConfigError(
            f"system.every: expected a block before one of the {count} layers of the language model, found the first "
            f"before layer {start}; lower every or set offset to 0"
        )
    return range(start, count, config.every)
