"""Language Models are Few-Shot Learners.

Brown, Mann, Ryder, Subbiah, Kaplan, Dhariwal, Neelakantan, Shyam, Sastry, Askell, Agarwal, Herbert-Voss, Krueger,
Henighan, Child, Ramesh, Ziegler, Wu, Winter, Hesse, Chen, Sigler, Litwin, Gray, Chess, Clark, Berner, McCandlish,
Radford, Sutskever, Amodei. NeurIPS 2020. arXiv:2005.14165

The words of a template are all there is: nothing is trained. With worked examples before the question the language
model may take the task from them, without them it has the words alone.

Differences from the paper:
- Examples are drawn once for a run, the classes in turn, and are the same for every question; the paper draws anew.
- Examples that do not fit into the longest row are left out, the first ones first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import Field

from graftlm.data.labelled import chosen
from graftlm.data.sentence import Sentence, Text
from graftlm.data.tokenize import Layout, tokenize_row
from graftlm.errors import ConfigError
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose
from graftlm.systems.base import Parts, PromptConfig, TextSystem


class ManualPromptConfig(PromptConfig):
    """How many worked examples, and which."""

    max_length: int = Field(1024, ge=16, description="longest row in positions, the examples included")
    examples: int = Field(0, ge=0, description="k, worked examples drawn from the training sentences; 0: zero-shot")
    draw: int = Field(0, ge=0, description="seed of which examples are drawn")
    separator: str = Field("\n\n", description="what stands behind an example")
    drawn: str = Field("", description="the examples as JSON, one list of parts each; filled in when they are drawn")


class ManualPrompt(TextSystem):
    """Worked examples, if any, and the words of the template."""

    name = "manual_prompt"
    Config = ManualPromptConfig
    config: ManualPromptConfig

    @classmethod
    def build(cls, config: ManualPromptConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: DataError for examples that are no sentences."""
        return cls(config, parts)

    @property
    def examples(self) -> list[Sentence]:
        """The worked examples, none of whose parts is a target."""
        rows = json.loads(self.config.drawn) if self.config.drawn else []
        return [Sentence.from_json(row).context() for row in rows]

    def learn(self, sentences: Iterable[Sentence]) -> None:
        """Draws the worked examples, the classes in turn. Raises: ConfigError where there is nothing to draw from."""
        if not self.config.examples:
            return
        rng, there = random.Random(self.config.draw), list(sentences)
        if not there:
            raise ConfigError(
                "system.examples: expected training sentences by number, found a stream; leave out 'stream'"
            )
        classes: dict[int, list[Sentence]] = {}
        for sentence in rng.sample(there, len(there)):
            classes.setdefault(chosen(sentence)[0], []).append(sentence)
        drawn: list[Sentence] = []
        while len(drawn) < self.config.examples and any(classes.values()):
            drawn += [own.pop() for _, own in sorted(classes.items()) if own][: self.config.examples - len(drawn)]
        rng.shuffle(drawn)
        told = json.dumps([sentence.to_json() for sentence in drawn], ensure_ascii=False)
        self.config = self.config.model_copy(update={"drawn": told})

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The examples that fit, and the words."""
        return compose(self.lm, self.read(self._shown(sentences)))

    def _shown(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        """Every sentence with as many of the last examples before it as its row has room for."""
        examples = self.examples
        if not examples:
            return list(sentences)
        layout = self._within_context(self.layout)
        end = Sentence((Text(self.config.separator),))
        sizes = [self._positions(example + end, layout) for example in examples]
        shown = []
        for sentence in sentences:
            room = layout.max_length - self._positions(sentence, layout)
            first = len(examples)
            while first and sizes[first - 1] <= room:
                first -= 1
                room -= sizes[first]
            kept = [part for example in examples[first:] for part in example + end]
            shown.append(Sentence((*kept, *sentence)))
        return shown

    def _positions(self, sentence: Sentence, layout: Layout) -> int:
        return len(tokenize_row(sentence, self.lm.tokenizer, layout).ids)
