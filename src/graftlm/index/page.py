"""What was found as one self-contained HTML page: a contact sheet with scores, thumbnails inside."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from graftlm.data.gallery import Hit
from graftlm.data.sentence import Media
from graftlm.errors import BadSampleError, DataError

_TEMPLATE = Path(__file__).with_name("page.html")
_THUMBNAIL = (464, 348)
_ASKED = (192, 192)
_SHOWN_METADATA = 4


def page(
    query: str,
    asked: Sequence[Media],
    hits: Sequence[Hit],
    details: Mapping[int, tuple[float, str]],
    facts: Sequence[str],
) -> str:
    """The page's HTML; nothing in it is loaded from anywhere.

    Args:
        query: the words that were asked for; asked: the pictures beside them
        details: date (s since 1970) and metadata (JSON) of a hit, by its `item`
        facts: short sentences below the title
    """
    top = max((hit.score for hit in hits), default=1.0)
    cards = "".join(_card(number, hit, top, details) for number, hit in enumerate(hits, start=1))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"graft find: {query}"),
        query=escape(query),
        asked="".join(_img(source, _ASKED, "asked for") for source in asked),
        facts="".join(f"<span>{escape(fact)}</span>" for fact in facts),
        hits=f"<main>{cards}</main>" if hits else "<p class='none'>Nothing was found.</p>",
    )


def write_page(path: Path, text: str) -> None:
    """Writes the page, whole or not at all. Raises: DataError when it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: the page cannot be written ({error.strerror}); choose another path") from None
    finally:
        temporary.unlink(missing_ok=True)


def _card(number: int, hit: Hit, top: float, details: Mapping[int, tuple[float, str]]) -> str:
    source = hit.image.source
    path = Path(str(source))
    link = escape(path.absolute().as_uri(), quote=True)
    share = 100 * max(0.0, hit.score) / top if top > 0 else 0.0
    lines = "".join(
        f"<p class='more'>{escape(line)}</p>" for line in [str(path.parent), *_lines(details.get(hit.item))]
    )
    return (
        f"<article><a class='shot' href='{link}'>{_img(source, _THUMBNAIL, path.name)}</a><div class='words'>"
        f"<div class='score'><span>{number}</span>{hit.score:.3f}<div class='bar'><b style='width:{share:.1f}%'></b>"
        f"</div></div><p class='name'><a href='{link}'>{escape(path.name)}</a></p>{lines}</div></article>"
    )


def _lines(detail: tuple[float, str] | None) -> list[str]:
    if detail is None:
        return []
    date, metadata = detail
    row = json.loads(metadata)
    words = [f"{name}: {value}" for name, value in list(row.items())[:_SHOWN_METADATA]]
    return [datetime.fromtimestamp(date).strftime("%Y-%m-%d"), *words]


def _img(source: Media, size: tuple[int, int], name: str) -> str:
    from PIL import Image, ImageOps

    from graftlm.data.media import load_image

    try:
        picture = load_image(source)
    except BadSampleError as error:
        return escape({"missing-file": "the file is gone"}.get(error.reason, "the file cannot be read"))
    small = ImageOps.contain(picture, size, Image.Resampling.LANCZOS) if _is_larger(picture.size, size) else picture
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='{escape(name, quote=True)}' src='data:image/jpeg;base64,{data}'>"


def _is_larger(found: tuple[int, int], size: tuple[int, int]) -> bool:
    return found[0] > size[0] or found[1] > size[1]
