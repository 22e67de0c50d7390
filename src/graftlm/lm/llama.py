"""A frozen Llama-type model read without transformers, whose import takes longer than most answers do.

The quick passes do all that a graft asks of it on a CPU. For anything else (training it, LoRA, texts too long for
them, another device) transformers' own model is loaded over the same file and answers from then on. The modules have
the names and classes of transformers', so that a checkpoint or a guard sees no difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from graftlm.errors import BackboneError, UnsupportedLMError
from graftlm.lm import llama_gradient
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, PrefixGeometry
from graftlm.lm.cache import KVCache, begin
from graftlm.lm.checks import check_inputs, wanted_layers
from graftlm.lm.frozen_llama import FrozenLlama, is_packable
from graftlm.lm.packed_llama import Attached, PackedLlama
from graftlm.lm.pages import give_back
from graftlm.lm.tokenizer import TextTokenizer
from graftlm.lm.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from graftlm.lm.huggingface import HuggingFaceLM

_PLAIN = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


class LlamaLM(LanguageModel):
    """A Llama in bfloat16 from a folder of safetensors; `reads` says which.

    Raises: BackboneError when the folder cannot be read.
    """

    def __init__(self, folder: Path, *, name: str, fingerprint: str) -> None:
        super().__init__()
        self.name, self.fingerprint, self._folder = name, fingerprint, folder
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.model: Any = _read(folder, config)
            self.tokenizer = TextTokenizer(TokenizerFile(folder), name=name, eos_id=config.get("eos_token_id"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackboneError(f"language model '{name}' cannot be read ({reason}); fetch it anew") from None
        self.dim = self.hidden_dim = int(config["hidden_size"])
        self.num_layers, self.vocab_size = int(config["num_hidden_layers"]), int(config["vocab_size"])
        self.context_length = int(config["max_position_embeddings"])
        self._geometry = PrefixGeometry(self.num_layers, int(config["num_key_value_heads"]), _head_dim(config))
        self._blocks: dict[int, nn.Module] = {}
        self._weights: FrozenLlama | None = None
        self._whole: tuple[HuggingFaceLM, ...] = ()  # a tuple: no module of its own in the tree

    @staticmethod
    def reads(folder: Path) -> bool:
        """Whether a folder holds a plain Llama, and this machine has what its quick passes need."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        rope = config.get("rope_parameters") or {}
        return (
            all(config.get(key) == value for key, value in _PLAIN.items())
            and rope.get("rope_type") == "default"
            and (folder / "tokenizer.json").is_file()
            and not torch.cuda.is_available()
            and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    @property
    def blocks(self) -> Mapping[int, nn.Module]:
        """The attached blocks."""
        return self._blocks

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        """One key and value a layer and group of heads."""
        return self._geometry

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors: (B, L) long to (B, L, D)."""
        vectors: Tensor = self.model.model.embed_tokens(ids)
        return vectors

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states."""
        logits: Tensor = self.model.lm_head(hidden)
        return logits

    def token_rows(self) -> tuple[Tensor, Tensor]:
        """Input and output vectors; the same tensor where they are tied."""
        return self.model.model.embed_tokens.weight, self.model.lm_head.weight

    def forward(
        self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None, layers: Sequence[int] = ()
    ) -> LMOutput:
        """One pass; see `LanguageModel.forward`. Raises: UnsupportedLMError for a gradient through a cache."""
        weights = None if cache is not None else self._quick_weights(inputs)
        if weights is None and (cache is None or cache.packed is None):
            found: LMOutput = self._unfolded()(inputs, cache=cache, at=at, layers=layers)
            return found
        check_inputs(self, inputs, past=0 if cache is None else cache.length, has_blocks=bool(self._blocks))
        wanted = wanted_layers(layers, self.num_layers, at)
        if weights is not None:
            logits, hidden, states = llama_gradient.run(weights, inputs, at, wanted, self._blocks)
            return LMOutput(logits, hidden, None, states)
        if torch.is_grad_enabled():
            raise UnsupportedLMError("a cache was given where gradients are wanted; call it under torch.no_grad()")
        begin(cache, inputs)
        attached = None if inputs.memory is None else Attached(inputs.memory, self._blocks)
        embeds = inputs.embeds.to(torch.bfloat16)
        logits, hidden, states = cache.packed(embeds, inputs.mask, cache, at, wanted, attached)
        cache.length += inputs.mask.shape[1]
        return LMOutput(logits, hidden, cache, states)

    def target_loss(
        self, inputs: LMInputs, at: Tensor, targets: Tensor, extra: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """See `LanguageModel.target_loss`; a chunk of the logits is made at a time."""
        weights = None if bool((at & ~inputs.mask).any()) else self._quick_weights(inputs)
        if weights is None:
            return self._unfolded().target_loss(inputs, at, targets, extra)
        check_inputs(self, inputs, past=0, has_blocks=bool(self._blocks))
        return llama_gradient.target_loss(weights, inputs, at, targets, self._blocks, extra)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for `rows` rows of at most `length` positions, prefix included."""
        weights = self._quick()
        if weights is None:
            return self._unfolded().new_cache(rows, length)
        shapes = [(self._geometry.num_kv_heads, self._geometry.head_dim)] * self.num_layers
        like = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
        return KVCache.empty(shapes, rows, length, packed=PackedLlama(weights), **like)

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> KVCache:
        """The given rows, in the given order."""
        selected: KVCache = cache.select(rows, drop=drop)
        return selected

    def read_cache(self, cache: Any) -> KVPrefix:
        """What a cache holds."""
        prefix: KVPrefix = cache.as_prefix()
        return prefix

    def spare_memory(self) -> None:
        """Lets go of the plain weights' pages where the joined ones are in use."""
        if self._weights is not None:
            give_back(self.model.parameters())
        for whole in self._whole:
            whole.spare_memory()

    def add_lora(self, rank: int) -> None:
        """Adds low-rank updates to every linear map of the decoder. Raises: MissingExtraError without peft."""
        self._unfolded().add_lora(rank)

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        """Applies ``block(hidden, memory)`` before layer i. Raises: UnsupportedLMError for a layer it has not."""
        missing = sorted(set(blocks) - set(range(self.num_layers)))
        if missing:
            raise UnsupportedLMError(
                f"language model '{self.name}' has {self.num_layers} layers, found a block for {missing[0]}"
            )
        self._blocks = dict(blocks)  # a plain dict: the blocks stay in the caller's module tree
        for whole in self._whole:
            whole.attach_cross_attention(blocks)

    def _quick_weights(self, inputs: LMInputs) -> FrozenLlama | None:
        """The weights for a whole pass without a cache, where the quick one can do it."""
        is_quick = llama_gradient.is_short(inputs) and not torch.is_autocast_enabled("cpu")
        return self._quick() if is_quick else None

    def _quick(self) -> FrozenLlama | None:
        """The weights for the quick passes; they are looked at for each batch, not for each of its steps."""
        if self._whole:
            return None
        decoder, head = self.model.model, self.model.lm_head
        if self._weights is None or not self._weights.fits(decoder, head):
            self._weights = FrozenLlama(decoder, head) if is_packable(decoder, head) else None
        return self._weights

    def _unfolded(self) -> HuggingFaceLM:
        """transformers' own model over the same file, which from now on answers everything."""
        if not self._whole:
            from graftlm.lm.huggingface import HuggingFaceLM

            whole = HuggingFaceLM.load(self._folder, name=self.name, precision="bfloat16", fingerprint=self.fingerprint)
            own = self.model.model.embed_tokens.weight
            whole.requires_grad_(own.requires_grad).to(own.device)
            if self._blocks:
                whole.attach_cross_attention(self._blocks)
            self.model, self._weights, self._whole = whole.model, None, (whole,)
        return self._whole[0]


class LlamaForCausalLM(nn.Module):
    """The decoder and its output matrix: names and shapes alone, nothing is computed by these modules."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)


class LlamaModel(nn.Module):
    """Word vectors, layers, the last norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            attention_dropout=config.get("attention_dropout", 0.0),
        )
        shape = config["vocab_size"], config["hidden_size"]
        # Without first values: drawing them on the meta device would import a compiler, for more than a second.
        self.embed_tokens = nn.Embedding(*shape, _weight=torch.empty(shape))
        self.layers = nn.ModuleList([LlamaDecoderLayer(config) for _ in range(config["num_hidden_layers"])])
        self.norm = LlamaRMSNorm(config)
        self.rotary_emb = LlamaRotaryEmbedding(_head_dim(config), config["rope_parameters"]["rope_theta"])


class LlamaDecoderLayer(nn.Module):
    """Attention and the gated dense layer, a norm before each."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config["hidden_size"], config["intermediate_size"])
        self.input_layernorm = LlamaRMSNorm(config)
        self.post_attention_layernorm = LlamaRMSNorm(config)


class LlamaAttention(nn.Module):
    """Maps of the attention; groups of query heads share a key head."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim, self.head_dim = config["hidden_size"], _head_dim(config)
        self.scaling = self.head_dim**-0.5
        wide, narrow = (config[f"num_{kind}_heads"] * self.head_dim for kind in ("attention", "key_value"))
        self.q_proj = nn.Linear(dim, wide, bias=False)
        self.k_proj = nn.Linear(dim, narrow, bias=False)
        self.v_proj = nn.Linear(dim, narrow, bias=False)
        self.o_proj = nn.Linear(wide, dim, bias=False)


class LlamaMLP(nn.Module):
    """Maps of the gated dense layer."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)
        self.act_fn = SiLUActivation()


class SiLUActivation(nn.Module):
    """Its name in the tree."""


class LlamaRMSNorm(nn.Module):
    """The weight of a norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config["hidden_size"]))
        self.variance_epsilon = float(config["rms_norm_eps"])


class LlamaRotaryEmbedding(nn.Module):
    """Rotary positions (arXiv:2104.09864)."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width, self.theta = width, theta

    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, width) of positions (B, L), in the type of `like`."""
        even = torch.arange(0, self.width, 2, dtype=torch.int64, device=positions.device).float()
        angles = positions[..., None].float() * (1.0 / self.theta ** (even / self.width))
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _read(folder: Path, config: Mapping[str, Any]) -> LlamaForCausalLM:
    """The modules over tensors that mirror the files. Raises: ValueError for a tensor that is missing."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            weights.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118 (no mapping)
    if config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in weights.items()}, assign=True)
    if config.get("tie_word_embeddings"):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()
