"""VQA accuracy and the answer normalisation before it (Antol et al. 2015, arXiv:1505.00468; VQA v2's evaluation code).

Answers and references are normalised alike, always (as open_flamingo does; the official code leaves a reference's
digits and articles as they are, and its punctuation where all ten agree, so that "the cat" could never be right).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

FEWEST_ANNOTATORS = 4
"""With fewer answers nobody could reach 1: any of them counts as right then."""

_ENOUGH = 3
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_MOST_PERIODS = 32  # the official code hands a flag of this value to `sub` where the count stands
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The right sides of the official table, whose left sides lack one apostrophe; those with "I" never match there, since
# words are in lower case by then.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
"""


def _typed(right: str) -> Iterator[str]:
    """How a contraction is typed with one of its apostrophes left out."""
    for place, letter in enumerate(right):
        if letter == "'":
            yield right[:place] + right[place + 1 :]


_RIGHT = {typed: right for right in _CONTRACTIONS.split() for typed in _typed(right)}
_RIGHT["somebody'd"] = "somebodyd"


def normalise(text: str) -> str:
    """An answer as it is compared: punctuation, case, number words, articles and contractions do not count.

    The steps and their order are the official code's, its slips included: a mark is deleted where it stands beside a
    space anywhere in the text, or the text holds a digit, a comma and a digit, and becomes a space elsewhere.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = _without_punctuation(text).lower().split()
    digits = (_DIGITS.get(word, word) for word in words)
    return " ".join(_RIGHT.get(word, word) for word in digits if word not in _ARTICLES)


def accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy in [0, 1]: mean over the annotators of min(1, how many of the others say the same / 3).

    Of ten annotators who agree 0, 1, 2, 3, 4 times: 0, 0.3, 0.6, 0.9, 1. With fewer than `FEWEST_ANNOTATORS` references
    it is 1 for an answer that is any of them.
    """
    wanted = normalise(answer)
    same = [normalise(reference) == wanted for reference in references]
    if len(same) < FEWEST_ANNOTATORS:
        return float(any(same))
    total = sum(same)
    return sum(min(1.0, (total - own) / _ENOUGH) for own in same) / len(same)


def cut(answer: str, ends: Iterable[str] = ("Question", "Answer", "Short")) -> str:
    """The short answer in what a model wrote: nothing from the next example on, nothing after a comma."""
    for end in ends:
        answer = answer.partition(end)[0]
    return answer.partition(", ")[0].strip()


def _without_punctuation(text: str) -> str:
    has_thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or has_thousands else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)
