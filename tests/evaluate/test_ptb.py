"""Words as coco-caption's Java tokenizer gives them; the right column was written by that program."""

from __future__ import annotations

import pytest

from graftlm.evaluate.metrics.ptb import NBSP, tokenize

SPOKEN = [
    ("A man riding a horse.", "a man riding a horse"),
    ("A man, a dog and a cat .", "a man a dog and a cat"),
    ('A sign that says "Stop!"', "a sign that says stop"),
    ("It's a man's dog, isn't it?", "it 's a man 's dog is n't it"),
    ("two dogs' bowls", "two dogs bowls"),
    ("I cannot see; I'm gonna look", "i can not see i 'm gon na look"),
    ("a black-and-white t-shirt", "a black-and-white t-shirt"),
    ("a pedestrian- and-veh", "a pedestrian and-veh"),
    ("(including bananas)", "-lrb- including bananas -rrb-"),
    ("Dr. Smith lives in the U.S.", "dr. smith lives in the u.s."),
    ("a clock says 12:44.", "a clock says 12:44"),
    ("$37,000 and 1/2 mile at 10:30pm", "$ 37,000 and 1/2 mile at 10:30 pm"),
    ("a 1960's car from the '70s", "a 1960 's car from the '70s"),
    ("black/white toilet,bathtub.In", "black/white toilet bathtub.in"),
    ("people at A&amp;M eat M&Ms", "people at a&m eat m&m s"),
    ("beach--kite flying...", "beach kite flying"),
    ("ma'am, it is 4 o'clock in Hawai'i", "ma'am it is 4 o'clock in hawai'i"),
    ("a # and ## ?? !!", "a # and ## ?? !!"),
    ("hotdog., with mustard", "hotdog. with mustard"),
    ("a na\u00efve caf\u00e9 \U0001f600", "a na\u00efve caf\u00e9"),
    ("\u201cA man\u2019s hat\u201d \u2014 red", "a man 's hat red"),
    ("A street sign points to Santa Fe St.", "a street sign points to santa fe st."),
    ("two strains stopped\nat overhead wires", "two strains stopped at overhead wires"),
]


@pytest.mark.parametrize(("caption", "words"), SPOKEN)
def test_words_are_those_of_the_java_tokenizer(caption: str, words: str) -> None:
    assert tokenize(caption) == words.split()


def test_a_mixed_fraction_is_one_token_with_a_space_in_it() -> None:
    assert tokenize("2 1/2 apples") == [f"2{NBSP}1/2", "apples"]


@pytest.mark.parametrize("caption", ["", "   ", ".", '" "', "\n", "\U0001f600"])
def test_nothing_said_gives_no_words(caption: str) -> None:
    assert tokenize(caption) == []


@pytest.mark.parametrize(
    "caption", ["a red bus", "a red, big bus .", "well-known red bus.", "the end etc.", "we cannot see."]
)
def test_the_short_way_and_the_lexer_agree(caption: str) -> None:
    assert tokenize(caption) == tokenize(f"{caption} ? ?")[: len(tokenize(caption))]
    assert tokenize(f'" {caption}') == tokenize(caption)
