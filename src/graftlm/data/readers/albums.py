"""Documents of captioned photos that any other reader reads: ``{reader: albums, path: flickr8k, photos: [1, 5]}``.

Photo, caption, photo, caption: what few-shot prompts look like. ``related`` names a file that `graft data related` has
written; then a share of the documents holds photos that look alike. `data.albums` says how they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from graftlm.data.albums import Albums, AlbumStyle
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base, parse
from graftlm.data.related import read_related
from graftlm.data.rows import PhotoRow, Samples
from graftlm.errors import ConfigError


class Spec(base.Spec):
    """What to read; `limit` counts photos."""

    of: Mapping[str, Any] = Field(
        default_factory=dict, description="what the reader of the photos is told besides: reader, images, prompt, tidy"
    )
    photos: tuple[int, int] = Field((1, 5), description="fewest and most photos in a document, drawn evenly")
    related: str | None = Field(None, description="file of related photos, written by `graft data related`")
    related_fraction: float = Field(
        0.5, ge=0, le=1, description="share of documents of related photos, nearest last; without 'related' none is"
    )
    pool: int = Field(16, ge=1, description="related photos are drawn from so many of the nearest")
    between: str = Field("", description="words after each caption but the last; empty: the system marks its end")
    documents: int | None = Field(None, ge=1, description="how many; empty: each caption closes one document")
    seed: int = Field(0, description="of the drawing")

    @field_validator("photos")
    @classmethod
    def _is_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("expected two numbers from 1 on, the smaller one first")
        return value


def claims(path: str) -> bool:
    """Never: the files belong to the reader of the photos."""
    return False


def read(spec: Spec, ledger: Ledger) -> Samples[int]:
    """The documents. Raises: ConfigError when the data are no captioned photos; DataError when none can be used."""
    inner = {"path": spec.path, "split": spec.split, "limit": spec.limit, **spec.of, "per": "caption"}
    parsed, module = parse(inner)
    rows = getattr(module.read(parsed, ledger), "rows", None)
    if not isinstance(parsed, base.CaptionSpec) or rows is None or not all(isinstance(row, PhotoRow) for row in rows):
        raise ConfigError(
            f"data (reader albums): expected captioned photos by number at {spec.path}, found what the reader "
            f"'{parsed.reader}' gives; name another one in 'of'"
        )
    related = [] if spec.related is None else read_related(spec.related).of([row.key for row in rows], spec.related)
    least, most = spec.photos
    style = AlbumStyle(least, most, spec.related_fraction, spec.pool, spec.between, spec.seed)
    albums = Albums(rows, parsed.style(), style, related)
    count = spec.documents or albums.num_captions
    return Samples(range(count), lambda number, _: albums.sample(number), [1] * count)
