"""Generated scenes, which need no file: ``{reader: scenes, split: train, limit: 2000}``."""

from __future__ import annotations

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.scenes import Family, Scenes


class Spec(base.Spec):
    """What to draw; `limit` is the number of scenes, and a scene has one caption or one question."""

    path: str = Field("", description="left empty: scenes are drawn, not read")
    split: str | None = Field("train", description="train, val or test; no picture is in two of them")
    limit: int | None = Field(1000, ge=1, description="number of scenes")
    families: tuple[Family, ...] = Field(("position",), description="position, count, relation, question; in turn")
    seed: int = Field(0, ge=0, description="another seed draws other scenes")


def claims(path: str) -> bool:
    """Never: no path holds scenes."""
    return False


def read(spec: Spec, ledger: Ledger) -> Scenes:
    """The scenes of a split. Raises: DataError for an unknown split."""
    return Scenes(spec.split or "train", spec.limit or 1000, seed=spec.seed, families=spec.families)
