"""Any causal language model of transformers, unmodified, behind the one call.

The decoder keeps its module tree and its bytes. Embeddings go in as `inputs_embeds`; a prefix goes in as past keys and
values; memory travels as a keyword argument that hooks take off. Positions always come from the mask: the defaults of
several families count padding.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from graftlm.errors import BackboneError, MissingExtraError, UnsupportedLMError
from graftlm.lm import attention, llama_gradient
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, PrefixGeometry
from graftlm.lm.cache import KVCache, begin
from graftlm.lm.checks import check_inputs, position_ids, wanted_layers
from graftlm.lm.fingerprint import model_fingerprint
from graftlm.lm.frozen_llama import FrozenLlama, is_frozen_llama
from graftlm.lm.gguf import read_once
from graftlm.lm.hooks import KEYWORD, MemoryHooks, Probe
from graftlm.lm.lora import inject_lora
from graftlm.lm.packed_llama import Attached, PackedLlama
from graftlm.lm.pages import give_back
from graftlm.lm.tokenizer import TextTokenizer

AttentionInterface.register(attention.NAME, attention.grouped_attention)
AttentionMaskInterface.register(attention.NAME, eager_mask)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
_PROBE_LENGTH = 4
_UNBOUNDED = 1 << 20


class LayerCache(Cache):
    """A cache as the layers of transformers read and write it."""

    def __init__(self, kept: KVCache) -> None:
        super().__init__(layers=[])
        self._kept = kept

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values; returns all of them, (rows, kv_heads, S, head_dim)."""
        kept, start = self._kept.layer(layer_idx), self._kept.length
        end = start + key_states.shape[2]
        kept[0, :, :, start:end] = key_states
        kept[1, :, :, start:end] = value_states
        return kept[0, :, :, :end], kept[1, :, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held before the running call."""
        return self._kept.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions attended to, and where they begin."""
        return self._kept.length + query_length, 0


class PrefixCache(Cache):
    """A prefix as the past of one call; gradients reach its keys and values."""

    def __init__(self, prefix: KVPrefix, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        # unbind, not indexing: its backward is one stack instead of one padded sum per layer.
        self.keys = prefix.keys.to(dtype).unbind(0)
        self.values = prefix.values.to(dtype).unbind(0)
        self.length = prefix.mask.shape[1]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The prefix followed by a layer's keys and values; nothing is kept."""
        key = torch.cat([self.keys[layer_idx], key_states], dim=2)
        return key, torch.cat([self.values[layer_idx], value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """P."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions attended to, and where they begin."""
        return self.length + query_length, 0


class HuggingFaceLM(LanguageModel):
    """An unmodified causal LM of transformers; `model` is the LM itself.

    Every family is tried once when it is built: its logits through the one call must equal its own.
    """

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str, *, name: str) -> None:
        super().__init__()
        self.model = model.eval()
        self.name = name
        self.fingerprint = fingerprint
        self._config = model.config.get_text_config()
        self.tokenizer = TextTokenizer(tokenizer, name=name, eos_id=_first(self._config.eos_token_id))
        self._decoder, self._layers = self._find_decoder()
        accepted = inspect.signature(self._decoder.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._hooks: MemoryHooks | None = None
        self.dim = model.get_input_embeddings().weight.shape[1]
        self.num_layers, self.hidden_dim = len(self._layers), int(getattr(self._config, "hidden_size", self.dim))
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.context_length = getattr(self._config, "max_position_embeddings", None) or _UNBOUNDED
        self._kv_shapes: list[tuple[int, int]] = []
        self._frozen: FrozenLlama | None = None
        self._is_tried = False
        self._try_out()
        self._is_tried = True

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, fingerprint: str | None = None) -> HuggingFaceLM:
        """Wraps a model that is already in memory. Raises: UnsupportedLMError when it does not fit the one call."""
        name = str(getattr(model.config, "name_or_path", "") or model.config.model_type)
        lm = cls(model, tokenizer, fingerprint or "", name=name)
        if fingerprint is None:
            weights = model.state_dict()
            ordered = ((key, weights[key]) for key in sorted(weights))
            settings = TextTokenizer(tokenizer, name=name, eos_id=lm.tokenizer.eos_id).settings()
            lm.fingerprint = model_fingerprint(ordered, model.config.to_dict(), settings)
        return lm

    @classmethod
    def load(cls, folder: Path, *, name: str, precision: str, fingerprint: str) -> HuggingFaceLM:
        """A model from a folder of safetensors.

        Raises: BackboneError when it cannot be read; MissingExtraError for int8 or nf4 without bitsandbytes.
        """
        with loading(f"language model '{name}'"), no_bars():
            model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, **_precision(precision))
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        part: Any
        for part in model.modules():
            if hasattr(part, "support_avx512bf16_for_cpu"):
                # bitsandbytes would repack nf4 weights at the first call without gradient: the frozen bytes change,
                # and gradients through the repacked weights are wrong (0.50.2).
                part.support_avx512bf16_for_cpu = False
        return cls(model, tokenizer, fingerprint, name=name)

    @property
    def blocks(self) -> Mapping[int, nn.Module]:
        """The attached blocks."""
        return {} if self._hooks is None else self._hooks.blocks

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        """Read off the keys of a trial. Raises: UnsupportedLMError where layers differ or keep no keys."""
        if len(set(self._kv_shapes)) != 1:
            raise UnsupportedLMError(
                f"{self._family}: expected the same number and width of key heads in every layer, found "
                f"{sorted(set(self._kv_shapes)) or 'none'}; a per-layer prefix does not fit, use embeddings"
            )
        heads, width = self._kv_shapes[0]
        return PrefixGeometry(len(self._kv_shapes), heads, width)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors: (B, L) long to (B, L, D)."""
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """Input and output vectors; the same tensor where they are tied."""
        inputs, outputs = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        return inputs, inputs if outputs.data_ptr() == inputs.data_ptr() else outputs

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states, with the family's own scale or cap."""
        return self.finish_logits(self.model.get_output_embeddings()(hidden))

    def finish_logits(self, logits: Tensor) -> Tensor:
        """The family's own scale or cap."""
        if (scale := getattr(self._config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(self._config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(self._config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass; see `LanguageModel.forward`. Raises: UnsupportedLMError for a prefix under checkpointing."""
        has_blocks = self._hooks is not None and bool(self._hooks.blocks)
        check_inputs(self, inputs, past=0 if cache is None else cache.length, has_blocks=has_blocks)
        numbers, depth = wanted_layers(layers, len(self._layers), at)
        if cache is None and (weights := self._quick_weights(inputs)) is not None:
            logits, hidden, states = llama_gradient.run(weights, inputs, at, (numbers, depth), self.blocks)
            return LMOutput(logits, hidden, None, states)
        past, mask = self._past(inputs, cache)
        length = inputs.embeds.shape[1]
        packed = None if cache is None else cache.packed
        if packed is not None and not torch.is_grad_enabled():
            attached = None if inputs.memory is None else Attached(inputs.memory, self.blocks)
            embeds, wanted = inputs.embeds.to(self._dtype), (numbers, depth)
            logits, hidden, states = packed(embeds, inputs.mask, cache, at, wanted, attached)
            cache.length += length
            return LMOutput(logits, hidden, cache, states)
        arguments: dict[str, Any] = {"attention_mask": mask, "past_key_values": past, "use_cache": past is not None}
        if any(number < len(self._layers) for number in numbers):
            arguments["output_hidden_states"] = True
        if self._takes_positions:
            arguments["position_ids"] = position_ids(mask, length)
        if inputs.memory is not None:
            arguments[KEYWORD] = inputs.memory
        found = self._decoder(inputs_embeds=inputs.embeds.to(self._dtype), **arguments)
        if cache is not None:
            cache.length += length
        top = {len(self._layers): found.last_hidden_state}
        states = tuple(top[number] if number in top else found.hidden_states[number] for number in numbers)
        hidden = top[depth] if depth in top else found.hidden_states[depth]
        return LMOutput(self.unembed(hidden if at is None else hidden[at]), hidden, cache, states)

    def target_loss(
        self, inputs: LMInputs, at: Tensor, targets: Tensor, extra: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """See `LanguageModel.target_loss`; of frozen Llamas on a CPU a chunk of the logits is made at a time."""
        has_blocks = self._hooks is not None and bool(self._hooks.blocks)
        check_inputs(self, inputs, past=0, has_blocks=has_blocks)
        weights = None if bool((at & ~inputs.mask).any()) else self._quick_weights(inputs)
        if weights is None:
            return super().target_loss(inputs, at, targets, extra)
        return llama_gradient.target_loss(weights, inputs, at, targets, self.blocks, extra)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for `rows` rows of at most `length` positions, prefix included."""
        if not self._kv_shapes:
            raise UnsupportedLMError(f"{self._family}: its layers keep no keys and values, so it cannot be cached here")
        device = self.model.get_input_embeddings().weight.device
        weights = self._frozen_weights()
        packed = PackedLlama(weights) if weights is not None and weights.packs else None
        return KVCache.empty(self._kv_shapes, rows, length, dtype=self._dtype, device=device, packed=packed)

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> KVCache:
        """The given rows, in the given order."""
        selected: KVCache = cache.select(rows, drop=drop)
        return selected

    def spare_memory(self) -> None:
        """Lets go of the plain weights' pages where the joined ones are in use."""
        if self._frozen is not None and self._frozen.packs:
            give_back(self._decoder.parameters())

    def read_cache(self, cache: Any) -> KVPrefix:
        """What a cache holds."""
        prefix: KVPrefix = cache.as_prefix()
        return prefix

    def add_lora(self, rank: int) -> None:
        """Adds trainable float32 updates to every linear map of the decoder, in place.

        Raises: MissingExtraError without peft.
        """
        inject_lora(self.model, rank)

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Applies ``block(hidden, memory)`` before layer i. Raises: UnsupportedLMError when a layer is not reached."""
        missing = sorted(set(blocks) - set(range(len(self._layers))))
        if missing:
            raise UnsupportedLMError(f"{self._family} has {len(self._layers)} layers, found a block for {missing[0]}")
        if self._hooks is None:
            self._hooks = MemoryHooks(self._layers)
        probe = Probe()
        with torch.no_grad(), self._as_unsupported("its layers do not take the memory"):
            self._decoder(inputs_embeds=self.embed(self._trial_ids()[:, :1]), use_cache=False, **{KEYWORD: probe})
        if len(probe.reached) != len(self._layers):
            raise UnsupportedLMError(
                f"{self._family}: memory reached {len(probe.reached)} of {len(self._layers)} decoder layers; "
                "this family cannot take cross-attention, choose another language model"
            )
        self._hooks.set_blocks(blocks)

    @property
    def _family(self) -> str:
        return f"language model '{self.name}' ({self._config.model_type})"

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def _past(self, inputs: LMInputs, cache: KVCache | None) -> tuple[Cache | None, Tensor]:
        """What the decoder is to continue, and the mask (B, past + L) of all of it."""
        prefix = inputs.prefix
        if cache is not None:
            end = begin(cache, inputs)
            return LayerCache(cache), cache.mask[:, :end]
        if prefix is None:
            return None, inputs.mask
        if self.model.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self._layers):
            raise UnsupportedLMError(
                f"{self._family}: a per-layer prefix is lost under gradient checkpointing; "
                "call model.gradient_checkpointing_disable(), or let media enter as embeddings"
            )
        return PrefixCache(prefix, self._dtype), torch.cat([prefix.mask, inputs.mask], dim=1)

    def _frozen_weights(self) -> FrozenLlama | None:
        """The decoder's weights for the quick passes, where it is one they know; looked at for each batch."""
        weights, head = self._frozen, self.model.get_output_embeddings()
        if weights is None or not weights.fits(self._decoder, head):
            weights = FrozenLlama(self._decoder, head) if is_frozen_llama(self._decoder, head) else None
            self._frozen = weights
        return weights  # two threads may both lay them out at first: the same twice

    def _quick_weights(self, inputs: LMInputs) -> FrozenLlama | None:
        """The same for a whole pass without a cache, where it is short."""
        if not self._is_tried or not llama_gradient.is_short(inputs):
            return None
        if torch.is_autocast_enabled("cpu"):  # it would change the precision of some of its products
            return None
        return self._frozen_weights()

    def _find_decoder(self) -> tuple[Any, list[nn.Module]]:
        """The network below the output matrix, and its layers in order."""
        decoder, head = self.model.base_model, self.model.get_output_embeddings()
        count = getattr(self._config, "num_hidden_layers", None)
        lists = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
        if decoder is self.model or head is None or not lists:
            raise UnsupportedLMError(
                f"{self._family}: expected a decoder with a list of {count} layers and an output matrix, found "
                f"{type(self.model).__name__}; choose a causal language model"
            )
        return decoder, list(lists[0])

    def _trial_ids(self) -> Tensor:
        device = self.model.get_input_embeddings().weight.device
        return torch.arange(_PROBE_LENGTH, device=device)[None] % self.vocab_size  # (1, T)

    @torch.no_grad()
    def _try_out(self) -> None:
        """Compares the one call with the model's own, and reads the shape of its keys."""
        ids, own = self._trial_ids(), DynamicCache()
        with self._as_unsupported("it does not run on ids"):
            wanted = self.model(input_ids=ids, past_key_values=own, use_cache=True).logits.float()
        keys: list[Any] = [getattr(layer, "keys", None) for layer in own.layers]
        shapes = [tuple(key.shape) for key in keys if key is not None]
        if len(shapes) == len(self._layers):
            self._kv_shapes = [(shape[1], shape[3]) for shape in shapes]
        default = self.model.config._attn_implementation
        on_cpu = ids.device.type == "cpu" and default in ("sdpa", "eager")
        names = [attention.NAME, default] if on_cpu else [default]
        for name in names:
            self.model.set_attn_implementation(name)
            inputs = LMInputs(self.embed(ids), torch.ones_like(ids, dtype=torch.bool))
            with self._as_unsupported("it does not run on embeddings"):
                found = self(inputs).logits.float()
            if (found - wanted).norm() <= (1e-4 if self._dtype == torch.float32 else 0.1) * wanted.norm():
                return
        raise UnsupportedLMError(
            f"{self._family}: its logits change on the way through embeddings and output matrix; "
            "this family does something in between that is not supported, choose another language model"
        )

    @contextmanager
    def _as_unsupported(self, what: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise UnsupportedLMError(f"{self._family}: {what} ({_first_line(error)})") from None


def convert_gguf(source: Path, folder: Path, name: str) -> str:
    """Writes a GGUF file as bfloat16 safetensors with its tokenizer; returns the fingerprint.

    Raises: BackboneError when the file cannot be read.
    """
    from transformers import GgufConfig

    with loading(f"language model '{name}': {source}"), no_bars(), read_once():
        where = {"gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **where)
        model.config.name_or_path = name
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return fingerprint_folder(folder, name)


def fingerprint_folder(folder: Path, name: str) -> str:
    """Fingerprint of a folder of safetensors, read tensor by tensor. Raises: BackboneError when it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BackboneError(f"language model '{name}': expected *.safetensors in {folder}, found none")
    with loading(f"language model '{name}'"), no_bars():
        tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(str(folder)), name=name, eos_id=-1)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(str(file), framework="pt")) for file in files]
            places = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (not a mapping)
            weights = ((key, places[key].get_tensor(key)) for key in sorted(places))
            return model_fingerprint(weights, config, tokenizer.settings())


def _precision(precision: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`. Raises: BackboneError for an unknown one; MissingExtraError."""
    if precision in _DTYPES:
        return {"dtype": _DTYPES[precision]}
    if precision not in ("int8", "nf4"):
        raise BackboneError(f"system.precision: expected float32, bfloat16, int8 or nf4, found '{precision}'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quant", f"a language model in {precision}")
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    if precision == "int8":
        # It would say at every call of every layer that bfloat16 is cast.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return {"dtype": torch.bfloat16, "quantization_config": make(load_in_8bit=True)}
    config = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"dtype": torch.bfloat16, "quantization_config": config}


def _first(value: Any) -> int | None:
    """A config's EOS may be one id or several."""
    found: int | None = value[0] if isinstance(value, list) else value
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def loading(what: str) -> Iterator[None]:
    """What goes wrong in reading a model, in one sentence. Raises: BackboneError."""
    try:
        yield
    except _LOADING_ERRORS as error:
        advice = "check the name, or fetch it anew"
        raise BackboneError(f"{what} cannot be read ({_first_line(error)}); {advice}") from None


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers prints bars and advice of its own while it loads."""
    import transformers.utils.logging as transformers_logging

    theirs: Any = transformers_logging
    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
