"""A tokenizer.json read by `tokenizers` alone: what `TextTokenizer` asks of transformers' tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


class TokenizerFile:
    """The tokenizer of a folder with tokenizer.json and tokenizer_config.json.

    Attributes:
        bos_token_id, eos_token_id, pad_token_id: None where it has none; chat_template: the template or None

    Raises: OSError, ValueError when it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        try:
            self._core = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 - it raises nothing narrower
            raise ValueError(f"tokenizer.json: {error}") from None
        self._core.no_truncation()
        self._core.no_padding()
        self._names = {kind: _text(config.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")}
        ids = {kind: self._core.token_to_id(name) if name else None for kind, name in self._names.items()}
        self.bos_token_id, self.eos_token_id, self.pad_token_id = ids["bos"], ids["eos"], ids["pad"]
        template = folder / "chat_template.jinja"
        self.chat_template: str | None = (
            template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
        )

    def __len__(self) -> int:
        return int(self._core.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[int]]:
        """Ids of a text, as {"input_ids": ...}; `split_special_tokens`: the spelling of one stays plain text."""
        self._core.encode_special_tokens = split_special_tokens
        return {"input_ids": list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)}

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Words of ids; they are never cleaned up."""
        del clean_up_tokenization_spaces
        return str(self._core.decode(ids, skip_special_tokens=skip_special_tokens))

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self._core.get_vocab(with_added_tokens=True)
        return vocabulary

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The messages as the template writes them."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        del tokenize
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        special = {f"{kind}_token": name for kind, name in self._names.items() if name}
        compiled = environment.from_string(self.chat_template or "")
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **special)


def _text(token: Any) -> str | None:
    """A token may be written as its text or as a table with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
