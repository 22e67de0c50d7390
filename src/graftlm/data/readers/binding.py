"""Generated episodes of fast concept binding, which need no file: ``{reader: binding, split: train, limit: 2000}``.

Names are invented anew for every episode and never those of an evaluation, so that a model learns to bind a name, not a
name. ``beside: [position]`` gives captioned scenes in turn with episodes.
"""

from __future__ import annotations

from itertools import product

from pydantic import Field

from graftlm.data.binding import Concept, Episodes, Names, Plan
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.scenes import Family


class Spec(base.Spec):
    """What to draw; `limit` is the number of samples, those beside episodes among them."""

    path: str = Field("", description="left empty: episodes are drawn, not read")
    split: str | None = Field("train", description="train, val or test; no picture is in two of them")
    limit: int | None = Field(1000, ge=1, description="number of samples")
    seed: int = Field(0, ge=0, description="another seed draws other episodes")
    ways: tuple[int, ...] = Field((2,), min_length=1, description="classes of an episode, 2 to 5; in turn")
    shots: tuple[int, ...] = Field((1,), min_length=1, description="examples of each class; in turn")
    queries: int = Field(1, ge=1, le=16, description="pictures asked about, one after the other; each is a target")
    induction: float = Field(0.5, ge=0, le=1, description="fraction that begins with 'Answer with a or b.'")
    concept: Concept | None = Field(None, description="what tells classes apart: shape or colour; empty: in turn")
    names: Names = Field("made-up", description="made-up: new in each episode; paper: dax, blicket ...; real")
    beside: tuple[Family, ...] = Field((), description="families of scenes given in turn with episodes")


def claims(path: str) -> bool:
    """Never: no path holds them."""
    return False


def read(spec: Spec, ledger: Ledger) -> Episodes:
    """The episodes of a split. Raises: DataError for an unknown split, or ways and shots out of range."""
    plans = [
        Plan(ways, shots, spec.queries, spec.concept, spec.names) for ways, shots in product(spec.ways, spec.shots)
    ]
    return Episodes(
        spec.split or "train",
        spec.limit or 1000,
        seed=spec.seed,
        plans=plans,
        induction=spec.induction,
        beside=spec.beside,
    )
