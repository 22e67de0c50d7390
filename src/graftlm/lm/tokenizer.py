"""A Hugging Face tokenizer as the `Tokenizer` of `lm/base.py`."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

from graftlm.errors import BackboneError
from graftlm.lm.base import Tokenizer


class TextTokenizer:
    """Plain text stays plain, template text may hold special tokens; neither is given BOS or EOS."""

    def __init__(self, tokenizer: Any, *, name: str, eos_id: int | None = None, bos_id: int | None = None) -> None:
        self._name = name
        self._plain = tokenizer
        self._template: Any = None
        self._lock = threading.Lock()
        self.vocab_size: int = len(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else bos_id
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else eos_id
        if eos is None:
            raise BackboneError(f"language model '{name}': its tokenizer has no end-of-sequence token; choose another")
        self.eos_id: int = eos
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
        self.encode("")  # the backend's flag is set before there can be two threads

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; the spelling of a special token inside it stays plain text."""
        ids: list[int] = self._plain(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of trusted template text, in which special tokens count."""
        with self._lock:
            if self._template is None:
                # The flag is kept on the backend between calls: two threads would flip it for each other.
                template = copy.deepcopy(self._plain)
                template("", add_special_tokens=False, split_special_tokens=False)
                self._template = template
        ids: list[int] = self._template(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Words of ids, special tokens left out."""
        text: str = self._plain.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The LM's own chat template as one string. Raises: BackboneError when it has none or refuses a role."""
        if not getattr(self._plain, "chat_template", None):
            raise BackboneError(
                f"language model '{self._name}' has no chat template; leave out the roles, or choose an instruct model"
            )
        from jinja2 import TemplateError

        try:
            rendered: str = self._plain.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BackboneError(
                f"language model '{self._name}': its chat template refuses the roles {roles} ({error})"
            ) from None
        return rendered

    def settings(self) -> dict[str, Any]:
        """All that decides its ids, for the fingerprint."""
        return {
            "vocabulary": sorted(self._plain.get_vocab().items(), key=lambda item: item[1]),
            "special": [self.bos_id, self.eos_id, self.pad_id],
            "chat_template": getattr(self._plain, "chat_template", None),
        }


class Remembering:
    """A tokenizer that encodes every text once, for those who read the same texts many times.

    Attributes:
        seconds: time spent encoding; encoded, asked: characters encoded, and characters asked for
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self.vocab_size, self.pad_id = tokenizer.vocab_size, tokenizer.pad_id
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.seconds, self.encoded, self.asked = 0.0, 0, 0

    @property
    def saved_s(self) -> float:
        """Seconds that encoding anew would have taken, by characters."""
        return self.seconds * (self.asked - self.encoded) / max(1, self.encoded)

    def encode(self, text: str) -> list[int]:
        """As the tokenizer does."""
        self.asked += len(text)
        found = self._ids.get(text)
        if found is None:
            start = time.perf_counter()
            found = self._tokenizer.encode(str(text))
            self.seconds += time.perf_counter() - start
            self.encoded += len(text)
            self._ids[str(text)] = found
        return list(found)

    def encode_template(self, text: str) -> list[int]:
        """As the tokenizer does; not kept."""
        return self._tokenizer.encode_template(text)

    def decode(self, ids: list[int]) -> str:
        """As the tokenizer does."""
        return self._tokenizer.decode(ids)

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """As the tokenizer does."""
        return self._tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)
