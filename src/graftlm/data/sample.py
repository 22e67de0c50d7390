"""What a reader gives: one sentence with what an evaluation has to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftlm.data.sentence import Sentence


@dataclass(frozen=True, slots=True)
class Sample:
    """One sentence to learn from or to answer.

    Attributes:
        sentence: the parts, targets included; `sentence.prompt()` is what a model is shown in evaluation
        key: stable and unique in its dataset; the captions of one photo share the stem: "1007.jpg#0", "1007.jpg#1"
        references: every accepted answer, as it stands in the data
        metadata: what else the row holds ("split", "question", "choices", "answer_index" ...)
    """

    sentence: Sentence
    key: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The key without the number of its caption: equal for all samples of one photo."""
        stem, _, number = self.key.rpartition("#")
        return stem if stem and number.isdigit() else self.key
