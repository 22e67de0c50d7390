"""Pictures inside the terminal, where it can show them: the protocols of kitty and of iTerm2."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal, TypeAlias

from graftlm.data.media import load_image
from graftlm.data.sentence import Media

Protocol: TypeAlias = Literal["kitty", "iterm"]
_WIDEST_PX = 320
_CHUNK = 4096


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """What the terminal understands, by its environment; nothing inside tmux and screen, which swallow pictures."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def escape_codes(source: Media, protocol: Protocol) -> str:
    """What draws a small copy of a picture when it is printed. Raises: BadSampleError when it cannot be read."""
    data = base64.b64encode(_png(source)).decode("ascii")
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(data) * 3 // 4};preserveAspectRatio=1:{data}\x07"
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    codes = []
    for number, chunk in enumerate(chunks):
        keys = ("a=T,f=100," if number == 0 else "") + f"m={int(number < len(chunks) - 1)}"
        codes.append(f"\x1b_G{keys};{chunk}\x1b\\")
    return "".join(codes)


def _png(source: Media) -> bytes:
    picture = load_image(source)
    picture.thumbnail((_WIDEST_PX, _WIDEST_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
