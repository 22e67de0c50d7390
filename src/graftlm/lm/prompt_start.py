"""What a trained prompt begins as: noise, words of the vocabulary drawn at random, or a text.

Prompt tuning §3.2 (arXiv:2104.08691) and prefix tuning §7.4 (arXiv:2101.00190) both find words best where data are few.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graftlm.errors import ConfigError
from graftlm.lm.base import LanguageModel
from graftlm.lm.compose import ids_as_prefix, text_ids

InitName = Literal["random", "vocabulary", "text"]
_RANGE = 0.5
_PREFIX_SPREAD = 0.02
_MOST_FREQUENT = 5000


@torch.no_grad()
def prompt_start(lm: LanguageModel, init: InitName, num_tokens: int, text: str = "") -> Tensor:
    """Vectors of a prompt: (K, D) float32; random: U(-0.5, 0.5), vocabulary: of the 5,000 first tokens (§3.2).

    Raises: ConfigError when `text` is wanted and missing, or given and not wanted.
    """
    if (init == "random") and not text:
        return torch.empty(num_tokens, lm.dim).uniform_(-_RANGE, _RANGE)
    return lm.embed(start_ids(lm, init, num_tokens, text)[None])[0].float()


@torch.no_grad()
def prefix_start(lm: LanguageModel, init: InitName, num_tokens: int, text: str = "") -> Tensor:
    """A prefix of every layer: (K, token_dim) float32; random: N(0, 0.02), else what the model keeps of the words.

    Raises: as `prompt_start`; ConfigError where a model that is no decoder is to start from words.
    """
    if init == "random" and not text:
        return torch.randn(num_tokens, lm.prefix_geometry.token_dim) * _PREFIX_SPREAD
    ids = start_ids(lm, init, num_tokens, text)
    if not lm.is_causal:
        raise ConfigError("system.init: an encoder's prefix begins at random, found another start; set init: random")
    return ids_as_prefix(lm, ids)


def start_ids(lm: LanguageModel, init: InitName, num_tokens: int, text: str) -> Tensor:
    """The words to begin with: (K,) long. Raises: ConfigError when `init` and `text` do not go together."""
    if (init == "text") != bool(text):
        raise ConfigError(f"system.init_text: goes with init: text and with no other, found {text!r} and init: {init}")
    device = next(lm.parameters()).device
    if init == "text":
        return text_ids(lm, text, num_tokens)
    # A tokenizer's first tokens are its most frequent; special ones that stand before them do no harm.
    return torch.randint(min(lm.vocab_size, _MOST_FREQUENT), (num_tokens,)).to(device)
