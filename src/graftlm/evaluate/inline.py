"""Pictures inside a page: small JPEGs as data, so that nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def jpeg_data(picture: PILImage) -> str:
    """An RGB picture as a data: address."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
