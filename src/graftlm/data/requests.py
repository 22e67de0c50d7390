"""Two kinds of requests made of captions, which a system that answers with pictures has to tell apart (no torch).

One asks for a picture of what a caption says, the other for words about it; both are turns of a dialogue as FROMAGe
reads it (§4, arXiv:2301.13823): "Q: ...\\nA:". Requests for words speak of pictures too, and some of those for a
picture do not. No wording stands in two splits.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal, TypeAlias

from graftlm.data.retrieval import query_of
from graftlm.data.rows import tidied
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text

Kind: TypeAlias = Literal["picture", "words"]
KINDS: tuple[Kind, ...] = ("picture", "words")

WORDINGS: dict[str, dict[Kind, tuple[str, ...]]] = {
    "train": {
        "picture": (
            "Show me a picture of {}.", "Can you find me a photo of {}?", "I would like to see {}.",
            "Do you have an image of {}?", "Please show {}.", "What does {} look like?", "A picture of {}, please.",
            "Could I see a photograph that shows {}?", "Find an image: {}.", "Let me look at {}.",
            "I am searching for a photo with {}.", "Send me a picture of {}, if you have one.",
            "Is there any picture of {}? Show it to me.", "Give me a photo of {}.",
            "Can I look at a snapshot of {}?", "Pull up a shot of {}.", "Which of my photos has {}?",
            "Let us see {}.", "Open the picture with {}.", "I am trying to picture {}. Help me with an image.",
            "Find {} among my photos.", "We need an illustration: {}.", "{}: is there a photo of that?",
            "Next, a picture with {}.", "Where is the shot of {}?", "Add an image of {} to my slides.",
            "Could we have a look at {}?", "Surprise me with a photograph of {}.", "Search for {}.",
            "Pick an image that fits: {}.", "My son has never seen {}. Show him.",
            "Return the photo in which you see {}.",
        ),
        "words": (
            "Say in other words: {}.", "Write a sentence about {}.", "Tell me about {}.",
            "Describe a picture of {} in words.", "Write a caption for a photo of {}.", "What might one say of {}?",
            "Say the same differently: {}.", "In one sentence, what is going on? {}.",
            "I saw a photo of {}. What would you call it?", "Put {} into a short sentence.",
            "Someone sent me a picture: {}. Describe it to a friend.", "How would you tell somebody about {}?",
            "Explain what happens here: {}.", "Complete my notes on an image of {}.",
            "How else can one put it: {}?", "Summarise: {}.", "Continue the story: {}.",
            "Translate into plain English: {}.", "My photo shows {}. Suggest a line to print below it.",
            "I cannot see the picture of {}. Say what is on it.",
            "What happens when you meet {}?", "Make a sentence out of this: {}.", "Name what one notices about {}.",
            "Think of {} and write down one thought.", "An image of {} came in. Note what it shows.",
            "Could you word this better: {}?", "How does a reporter put it: {}?", "Read this and repeat it freely: {}.",
            "Is {} something for a caption? Give me one.", "Answer in words: what goes on with {}?",
            "Someone asks you about {}. What do you reply?", "For a blind reader, say what a photo of {} holds.",
        ),
    },
    "val": {
        "picture": (
            "Please look for a photo of {}.", "I want to see what {} looks like.", "Any image with {}?",
            "Bring up a picture of {}.",
        ),
        "words": (
            "Rephrase this: {}.", "What would you write under a photo of {}?", "Talk about {}.",
            "Report in a sentence what you know: {}.",
        ),
    },
    "test": {
        "picture": (
            "Could you show me {}?", "I need a photograph of {}.", "Get me an image that has {} in it.",
            "May I see {}?", "Have you got a photo of {}?", "Display a picture of {}.",
        ),
        "words": (
            "Express this another way: {}.", "Which words fit a picture of {}?", "What is the story of {}?",
            "Give a short description of {}.", "My friend took a photo of {}. What should its title be?",
            "Tell me in a few words what this means: {}.",
        ),
    },
}  # fmt: skip
"""Requests by split and kind; `{}` stands for what a caption says."""


def request(sample: Sample, kind: Kind, split: str, rng: random.Random) -> Sentence:
    """A request about a captioned photo, and its answer as target: the photo, or another of its captions.

    The sample shows one photo and has references.
    """
    captions = [tidied(text) for text in sample.references]
    told = rng.randrange(len(captions))
    asked = Text(f"Q: {rng.choice(WORDINGS[split][kind]).format(_scene(captions[told]))}\nA:")
    if kind == "picture":
        return Sentence((asked, replace(_photo(sample), target=True)))
    others = captions[:told] + captions[told + 1 :] or captions
    return Sentence((asked, Text(f" {rng.choice(others)}", target=True)))


def several(sample: Sample, count: int, rng: random.Random) -> Sentence:
    """Several captions of a photo, in random order, and the photo as target."""
    captions = rng.sample(sample.references, min(count, len(sample.references)))
    return Sentence((*query_of(captions), replace(_photo(sample), target=True)))


def _scene(caption: str) -> str:
    """What a caption says, as a part of a sentence: "a dog runs"."""
    words = caption.strip().rstrip(".!? ")
    return words[:1].lower() + words[1:]


def _photo(sample: Sample) -> Image:
    return next(part for part in sample.sentence if isinstance(part, Image))
