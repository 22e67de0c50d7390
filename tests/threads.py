"""Two threads that ask one system."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


def wrong_answers(ask: Callable[[int], Any], expected: Sequence[Any], turns: int) -> list[int]:
    """Numbers of the questions that `ask` answers otherwise than `expected`; two threads ask `turns` times each."""
    wrong: list[int] = []

    def work(offset: int) -> None:
        for turn in range(turns):
            index = (turn + offset) % len(expected)
            if ask(index) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
