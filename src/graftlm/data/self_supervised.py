"""Tasks that plain text sets itself, for pre-training prompts (PPT §3.2, arXiv:2109.04332).

Documents are lists of sentences. *Pair*: does the second sentence follow the first (yes), stand in the same document
(maybe), or in another (no)? *Choice*: which of six sentences comes next? *Single*: how does the text sound, of five
words? *Unified*: any of them as a choice among lettered options. *Hybrid*: a hard prompt stands around the words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

from graftlm.data.sentence import Filled, LabelWord, Part, Sentence, Text
from graftlm.errors import DataError

FormatName = Literal["pair", "choice", "single"]
Words = tuple[tuple[str, ...], ...]

PAIR_WORDS: Words = ((" no",), (" maybe",), (" yes",))
STAR_WORDS: Words = ((" terrible",), (" bad",), (" okay",), (" good",), (" great",))
NUM_CHOICES = 6
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEAST_CHARS = 20
_ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")


def sentences_of(text: str) -> list[str]:
    """The sentences of a document that are long enough to mean something."""
    found = (" ".join(part.split()) for part in _ENDS.split(text))
    return [sentence for sentence in found if len(sentence) >= _LEAST_CHARS]


def letters(count: int) -> Words:
    """The words of lettered options: " A", " B" ... Raises: DataError for more than the alphabet has."""
    if count > len(_LETTERS):
        raise DataError(f"a choice has at most {len(_LETTERS)} options, found {count}; use another format")
    return tuple((f" {letter}",) for letter in _LETTERS[:count])


def pair(documents: Sequence[Sequence[str]], rng: random.Random, *, hybrid: bool = False) -> Sentence:
    """Two sentences and whether they go together, one kind as often as another.

    Raises: DataError where no document has three sentences, or there is but one document.
    """
    label = rng.randrange(len(PAIR_WORDS))
    first, elsewhere = _two_documents(documents, rng)
    place = rng.randrange(len(first) - 1)
    if label == 2:
        other = first[place + 1]
    elif label == 1:
        away = [at for at in range(len(first)) if abs(at - place) > 1]
        place = place if away else 0
        other = first[rng.choice(away or [len(first) - 1])]
    else:
        other = rng.choice(elsewhere)
    question = " Do these two follow each other? The answer is" if hybrid else " ?"
    opening = [Text("First:"), *_filled(" " + first[place]), Text(" Second:")] if hybrid else [*_filled(first[place])]
    return Sentence((*opening, *_filled(" " + other), Text(question), _target(label, PAIR_WORDS)))


def choice(documents: Sequence[Sequence[str]], rng: random.Random, *, hybrid: bool = False) -> Sentence:
    """A sentence and six that may follow it, one of which does. Raises: DataError as `pair`."""
    own, other = _two_documents(documents, rng)
    place = rng.randrange(len(own) - 1)
    wrong = [sentence for at, sentence in enumerate(own) if at not in (place, place + 1)]
    rng.shuffle(wrong)
    wrong = wrong[: NUM_CHOICES // 2]
    wrong += [rng.choice(other) for _ in range(NUM_CHOICES - 1 - len(wrong))]
    label = rng.randrange(NUM_CHOICES)
    options = [*wrong[:label], own[place + 1], *wrong[label:]]
    question = " Which of these comes next?" if hybrid else " ?"
    shown = [Text(Filled(" " + option, True)) for option in options]
    return Sentence((*_filled(own[place]), Text(question), *_options(shown), _target(label, letters(NUM_CHOICES))))


def single(text: str, stars: int, *, hybrid: bool = False) -> Sentence:
    """A text and how it sounds, of five words; `stars`: 0 to 4."""
    question = " All in all, it was" if hybrid else " It was"
    return Sentence((*_filled(text), Text(question), _target(stars, STAR_WORDS)))


def as_choice(sentence: Sentence) -> Sentence:
    """A classification task as a choice among lettered options, which are its label words (PPT §3.2.4).

    A sentence of no such task, or that is a choice already, stays as it is.
    """
    for place, part in enumerate(sentence):
        if part.target and isinstance(part, Text) and isinstance(part.content, LabelWord):
            word = part.content
            if word.words == letters(len(word.words)):
                return sentence
            options = [Text(" " + words[0].strip()) for words in word.words]
            before, after = sentence.parts[:place], sentence.parts[place + 1 :]
            lettered = _target(word.label, letters(len(options)))
            return Sentence((*before, Text(" ?"), *_options(options), lettered, *after))
    return sentence


def _options(options: Sequence[Text]) -> list[Part]:
    """Every option behind its letter, and the words that ask for one."""
    parts: list[Part] = []
    for (letter,), option in zip(letters(len(options)), options, strict=True):
        parts += [Text(f"{letter}."), option]
    return [*parts, Text(" The answer is")]


def _filled(words: str) -> list[Part]:
    """Words that may be cut where a row is too long."""
    return [Text(Filled(words, True))]


def _target(label: int, words: Words) -> Text:
    return Text(LabelWord(label, words), target=True)


def _two_documents(documents: Sequence[Sequence[str]], rng: random.Random) -> tuple[Sequence[str], Sequence[str]]:
    """One with at least three sentences, and another one."""
    if len(documents) < 2:
        raise DataError(f"self-supervised text: expected two documents or more, found {len(documents)}; give more text")
    for _ in range(1000):
        first, other = rng.sample(range(len(documents)), 2)
        if len(documents[first]) > 2 and documents[other]:
            return documents[first], documents[other]
    raise DataError("self-supervised text: expected documents of three sentences or more, found hardly any")
