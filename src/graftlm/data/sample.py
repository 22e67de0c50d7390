"""What a reader gives: one sentence with what an evaluation has to know about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, overload

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


class NumberedSamples(Sequence[Sample], ABC):
    """Samples by number, each made when it is asked for. `what`: what an error calls one of them."""

    what: ClassVar[str] = "sample"

    @abstractmethod
    def make(self, number: int) -> Sample:
        """The sample of a number from 0 to one below their length."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        count = len(self)
        if isinstance(index, slice):
            return [self.make(number) for number in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"{self.what} {index} of {count}")
        return self.make(index % count)
