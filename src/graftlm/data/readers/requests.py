"""Captioned photos of any reader, and requests made of their captions: what teaches a system when to show a picture.

``{reader: requests, captions: jsonl, path: data/flickr8k, split: train, requests: 0.1, several: 0.1}``
"""

from __future__ import annotations

import random

from pydantic import ConfigDict, Field

from graftlm.data import readers
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.requests import KINDS, WORDINGS, request, several
from graftlm.data.rows import Samples
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image
from graftlm.errors import ConfigError, DataError

_MOST_CAPTIONS = 5


class Spec(base.Spec):
    """What to read; a key that is not named here belongs to the reader of the captions."""

    model_config = ConfigDict(frozen=True, extra="allow")

    captions: str = Field("jsonl", description="reader of the captioned photos")
    requests: float = Field(0.1, ge=0, description="requests for each captioned sample, every other one for a picture")
    several: float = Field(0.0, ge=0, description="queries of 2 to 5 captions of a photo for each captioned sample")
    alone: bool = Field(False, description="without the captioned samples themselves")
    seed: int = Field(0, ge=0, description="another seed makes other requests")


def claims(path: str) -> bool:
    """Never: captions are claimed by their own reader."""
    return False


def read(spec: Spec, ledger: Ledger) -> Samples[int]:
    """The captioned samples first, if they are wanted, then what is made of them.

    What is made of them depends on the seed and its number alone.
    Raises: ConfigError for captions of this reader itself; DataError where a sample is no captioned photo.
    """
    if spec.captions == "requests":
        raise ConfigError("data: captions: expected the reader of captioned photos, found 'requests' itself; try jsonl")
    table = {"path": spec.path, "split": spec.split, "limit": spec.limit, "per": spec.per, **(spec.model_extra or {})}
    samples = readers.read_all({**table, "reader": spec.captions}, ledger)
    first_several = round(len(samples) * (1 + spec.requests))
    count, split = first_several + round(len(samples) * spec.several), wordings_of(spec.split, "train")

    def build(number: int, _: int) -> Sample:
        if number < len(samples):
            return samples[number]
        rng = random.Random(f"{spec.seed}/{number}")
        sample = _checked(samples[rng.randrange(len(samples))])
        if number < first_several:
            sentence = request(sample, KINDS[number % len(KINDS)], split, rng)
        else:
            sentence = several(sample, rng.randint(2, _MOST_CAPTIONS), rng)
        return Sample(sentence, f"{sample.stem}/{number}", sample.references, sample.metadata)

    numbers = range(len(samples) if spec.alone else 0, count)
    return Samples(numbers, build, [1] * len(numbers))


def wordings_of(split: str | None, otherwise: str) -> str:
    """The split whose wordings belong to a split of the data."""
    return next((name for name in WORDINGS if split is not None and base.same_split(split, name)), otherwise)


def _checked(sample: Sample) -> Sample:
    if not sample.references or not any(isinstance(part, Image) for part in sample.sentence):
        raise DataError(f"requests: expected a captioned photo, found '{sample.key}' without captions or photo")
    return sample
