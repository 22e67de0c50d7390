"""Masked language models of transformers (BERT, arXiv:1810.04805; RoBERTa, arXiv:1907.11692) behind the one call.

They look both ways: a class is told at a mask that may stand anywhere, nothing is written, and there is no cache. A
checkpoint without an output matrix (MiniLM) gives hidden states, which a linear head reads. A per-layer prefix goes in
as past keys and values, as in P-tuning v2 (arXiv:2110.07602); positions come from the mask, the prefix included, as
peft has them with BERT.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from graftlm.errors import BackboneError, UnsupportedLMError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, PrefixGeometry
from graftlm.lm.checks import check_inputs, position_ids, wanted_layers
from graftlm.lm.fingerprint import model_fingerprint
from graftlm.lm.huggingface import PrefixCache, loading, no_bars
from graftlm.lm.lora import inject_lora
from graftlm.lm.tokenizer import TextTokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PROBE_LENGTH = 4


class MaskedLM(LanguageModel):
    """An encoder of transformers without its pooler, and with its masked-LM head where it has one that is one module.

    Built, it is tried once: what comes out through embeddings and mask must equal what the model makes of ids.
    """

    is_causal = False

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str, *, name: str) -> None:
        super().__init__()
        model = model if len(_heads(model)) == 1 else model.base_model  # a head in several parts is not called alone
        self.model = model.eval()
        self.name = name
        self.fingerprint = fingerprint
        self.mask_id = tokenizer.mask_token_id
        self.tokenizer = _words(tokenizer, name)
        self._config = model.config
        if getattr(self._encoder, "pooler", None) is not None:
            self._encoder.pooler = None  # nothing reads it: it would get no gradient where the model is trained
        if self.mask_id is None or self.tokenizer.bos_id is None:
            raise BackboneError(f"masked language model '{name}': expected a mask and a first token, found none")
        accepted = inspect.signature(self._encoder.forward).parameters
        self._takes_past = "past_key_values" in accepted
        if "position_ids" not in accepted:
            raise UnsupportedLMError(f"{self._family}: it takes no positions, so that padding would be counted")
        self.has_head = self._encoder is not model
        self.dim = int(model.get_input_embeddings().weight.shape[1])
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self.num_layers, self.hidden_dim = int(self._config.num_hidden_layers), int(self._config.hidden_size)
        self._first_position = self._offset()
        self.context_length = int(self._config.max_position_embeddings) - self._first_position
        self._try_out()

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> MaskedLM:
        """Wraps a model that is in memory. Raises: UnsupportedLMError when it does not fit the one call."""
        name = str(getattr(model.config, "name_or_path", "") or model.config.model_type)
        lm = cls(model, tokenizer, "", name=name)
        weights = model.state_dict()
        ordered = ((key, weights[key]) for key in sorted(weights))
        lm.fingerprint = model_fingerprint(ordered, model.config.to_dict(), _words(tokenizer, name).settings())
        return lm

    @classmethod
    def load(cls, folder: Path, *, name: str, precision: str, fingerprint: str) -> MaskedLM:
        """A model from a folder of safetensors, with a head if its checkpoint has one. Raises: BackboneError."""
        if precision not in _DTYPES:
            raise BackboneError(f"masked language model '{name}': expected float32 or bfloat16, found '{precision}'")
        options: dict[str, Any] = {"use_safetensors": True, "dtype": _DTYPES[precision], "output_loading_info": True}
        with loading(f"masked language model '{name}'"), no_bars():
            if _has_head(folder):
                model, info = AutoModelForMaskedLM.from_pretrained(str(folder), **options)
            else:
                model, info = AutoModel.from_pretrained(str(folder), **options)
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            count = len(missing)
            raise BackboneError(f"masked language model '{name}': {count} weights are missing, {missing[0]} first")
        return cls(model, tokenizer, fingerprint, name=name)

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        """Every head has its own keys. Raises: UnsupportedLMError where no past can be given."""
        heads = int(getattr(self._config, "num_attention_heads", 0))
        if not self._takes_past or not heads:
            raise UnsupportedLMError(f"{self._family}: its layers take no keys and values; use a prompt of embeddings")
        return PrefixGeometry(self.num_layers, heads, self.hidden_dim // heads)

    def embed(self, ids: Tensor) -> Tensor:
        """Word vectors, to which the model itself adds positions: (B, L) long to (B, L, D)."""
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """Input and output vectors. Raises: UnsupportedLMError without an output matrix."""
        outputs = self.model.get_output_embeddings() if self.has_head else None
        if outputs is None:
            raise UnsupportedLMError(f"{self._family} has no output vectors; read its hidden states")
        inputs = self.model.get_input_embeddings().weight
        return inputs, inputs if outputs.weight.data_ptr() == inputs.data_ptr() else outputs.weight

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states; (..., 0) without an output matrix."""
        if not self.has_head:
            return hidden.new_zeros(*hidden.shape[:-1], 0)
        logits: Tensor = _heads(self.model)[0](hidden)
        return logits

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The mean over the positions in use: (B, L, D) and (B, L) to (B, D)."""
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass; see `LanguageModel.forward`. Raises: UnsupportedLMError for a cache."""
        if cache is not None:
            raise self._cannot("continue a cache")
        check_inputs(self, inputs, past=0, has_blocks=False)
        numbers, depth = wanted_layers(layers, self.num_layers, at)
        prefix, mask = inputs.prefix, inputs.mask
        arguments: dict[str, Any] = {}
        if prefix is not None:
            mask = torch.cat([prefix.mask, mask], dim=1)  # (B, P + L)
            arguments["past_key_values"] = PrefixCache(prefix, self._dtype)
        found = self._encoder(
            inputs_embeds=inputs.embeds.to(self._dtype),
            attention_mask=mask,
            position_ids=position_ids(mask, inputs.mask.shape[1]) + self._first_position,
            output_hidden_states=any(number < self.num_layers for number in numbers),
            **arguments,
        )
        top = {self.num_layers: found.last_hidden_state}
        states = tuple(top[number] if number in top else found.hidden_states[number] for number in numbers)
        hidden = top[depth] if depth in top else found.hidden_states[depth]
        return LMOutput(self.unembed(hidden if at is None else hidden[at]), hidden, None, states)

    def new_cache(self, rows: int, length: int) -> Any:
        """Raises: UnsupportedLMError."""
        raise self._cannot("write")

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> Any:
        """Raises: UnsupportedLMError."""
        raise self._cannot("write")

    def read_cache(self, cache: Any) -> KVPrefix:
        """Raises: UnsupportedLMError."""
        raise self._cannot("write")

    def add_lora(self, rank: int) -> None:
        """Adds trainable float32 updates to every linear map, in place. Raises: MissingExtraError without peft."""
        inject_lora(self.model, rank)

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Raises: UnsupportedLMError."""
        raise self._cannot("read a memory")

    @property
    def _encoder(self) -> Any:
        """The network below the head."""
        return self.model.base_model

    @property
    def _family(self) -> str:
        return f"masked language model '{self.name}' ({self.model.config.model_type})"

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def _cannot(self, what: str) -> UnsupportedLMError:
        return UnsupportedLMError(
            f"{self._family} cannot {what}: it looks both ways and has no cache; choose a causal language model"
        )

    def _offset(self) -> int:
        """The first position: families after RoBERTa count from behind their padding id."""
        embeddings = getattr(self._encoder, "embeddings", None)
        counts_from_pad = hasattr(embeddings, "create_position_ids_from_inputs_embeds")
        return int(embeddings.padding_idx) + 1 if counts_from_pad and embeddings is not None else 0

    @torch.no_grad()
    def _try_out(self) -> None:
        """Raises: UnsupportedLMError where the one call gives something else than the model's own."""
        device = self.model.get_input_embeddings().weight.device
        usable = [number for number in range(self.vocab_size) if number != self.tokenizer.pad_id][-_PROBE_LENGTH:]
        ids = torch.tensor([usable], device=device)
        inputs = LMInputs(self.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        try:
            own = self.model(input_ids=ids)
            found = self(inputs)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedLMError(f"{self._family}: it does not run on embeddings ({first})") from None
        wanted = own.logits if self.has_head else own.last_hidden_state
        here = found.logits if self.has_head else found.hidden
        tolerance = 1e-4 if self._dtype == torch.float32 else 0.1
        if here.shape != wanted.shape or (here - wanted).float().norm() > tolerance * wanted.float().norm():
            raise UnsupportedLMError(
                f"{self._family}: what it gives changes on the way through embeddings and head; choose another model"
            )


def is_masked(folder: Path) -> bool:
    """Whether a folder holds an encoder (BERT, RoBERTa and their like) and no causal language model."""
    config = _config(folder)
    names = config.get("architectures") or []
    if config.get("is_decoder") or config.get("is_encoder_decoder") or any("Causal" in name for name in names):
        return False
    return config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _heads(model: Any) -> list[Any]:
    """What stands beside the network below the head."""
    return [child for child in model.children() if child is not model.base_model]


def _words(tokenizer: Any, name: str) -> TextTokenizer:
    return TextTokenizer(tokenizer, name=name, eos_id=tokenizer.sep_token_id, bos_id=tokenizer.cls_token_id)


def _has_head(folder: Path) -> bool:
    return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in _config(folder).get("architectures") or [])


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
