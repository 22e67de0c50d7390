"""A table of words as a system holds it: rows for the words of its data, and what another table has learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from graftlm.data.sentence import Sentence
from graftlm.errors import ConfigError
from graftlm.nn.token_table import TokenTable

Words = Callable[[Sequence[Sentence]], tuple[Tensor, Tensor]]
"""Which words of sentences are read: ids and mask, (B, S) each."""

_ROWS_AT_ONCE = 64


@torch.no_grad()
def keep_words(table: TokenTable, sentences: Iterable[Sentence], words: Words) -> None:
    """Gives the words of sentences rows of their own; they are the rows that training reaches.

    Raises: ConfigError without sentences, which a stream does not tell beforehand.
    """
    found: set[int] = set()
    rest, count = iter(sentences), 0
    while some := list(islice(rest, _ROWS_AT_ONCE)):
        ids, mask = words(some)
        found.update(ids[mask].tolist())
        count += len(some)
    if not count:
        raise ConfigError("a table of words: expected training sentences by number, found a stream; leave out 'stream'")
    table.keep(torch.tensor(sorted(found), dtype=torch.long, device=table.ids.device))
    table.reached = len(found)


def begin_from(tensors: Mapping[str, Tensor], table: TokenTable, network: nn.Module | None, where: str) -> None:
    """Takes the rows of a graft of `knowledge`, and its network where it has the same shape.

    Raises: ConfigError when it holds no table of that width.
    """
    rows, ids = tensors.get("table.rows"), tensors.get("table.ids")
    if rows is None or ids is None or rows.shape[1] != table.width:
        found = "none" if rows is None else f"one of width {rows.shape[1]}"
        raise ConfigError(
            f"system.pretrained: {where}: expected a table of width {table.width}, found {found}; give a graft of the "
            "system knowledge over the same language model"
        )
    table.replace(ids, rows)
    for name, parameter in network.named_parameters() if network is not None else ():
        given = tensors.get(f"network.{name}")
        if given is not None and given.shape == parameter.shape:
            parameter.data.copy_(given)
