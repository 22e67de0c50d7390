"""Pictures from wherever they come, as upright 8-bit RGB, and the hash of what a media item holds."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError, DecompressionBombWarning, Transpose
from torch import Tensor

from graftlm.data.sentence import Media, MediaPart, State, Text, Video
from graftlm.errors import BadSampleError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, beside OSError.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError)
_BOMB = (DecompressionBombError, DecompressionBombWarning)
_BLACK_SIZE = (224, 224)
_FRESH_S = 1.0


def load_image(source: Media, *, where: str = "") -> PILImage:
    """A picture as upright RGB of 8 bits; transparency is laid on white, of a film only the first frame is taken.

    Deep grey (16 and 32 bits, floats) is scaled to 8 bits, not clipped. `where` (a file and line, say) opens the
    message of an error.

    Raises: BadSampleError with reason missing-file, empty-file, unreadable-image, truncated-image, bomb-image,
        empty-image or wrong-type.
    """
    name = _name(source)
    picture = _open(source, name, where)
    try:
        _check_size(picture, name, where)
        picture.load()
        return _rgb(_upright(picture))
    except _BOMB:
        raise _bomb(picture.width, picture.height, name, where) from None
    except _DAMAGE as error:
        raise _damaged(error, name, where) from None
    finally:
        if picture is not source:  # Pillow closes a file only when all of it could be decoded
            picture.close()


def pixels(picture: PILImage) -> Tensor:
    """An RGB picture as uint8 (3, H, W) in [0, 255]."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)  # (3, H, W)


def black_image(like: Media | None = None) -> PILImage:
    """A black picture for the blind control, as large as `like` (224 x 224 without)."""
    size = _BLACK_SIZE if like is None else load_image(like).size
    return PIL.Image.new("RGB", size)


def content_hash(item: Media | MediaPart | Text) -> str:
    """SHA-256 (hex) of what a media item holds; a file and its bytes have the same hash, whatever their names.

    A file is read again only when its size or modification time has changed. Pillow pictures are known by mode,
    size and pixels; state vectors by their values; texts by their words; a folder by its files in name order. A
    film has another hash than a picture of the same file, of which only the first frame counts.
    Raises: BadSampleError when a file is missing or cannot be read.
    """
    if isinstance(item, State):
        return hashlib.sha256(b"state\0" + np.asarray(item.values, dtype="<f8").tobytes()).hexdigest()
    if isinstance(item, Text):
        return hashlib.sha256(b"text\0" + item.content.encode()).hexdigest()
    if isinstance(item, Video):
        return hashlib.sha256(f"film\0{content_hash(item.source)}".encode()).hexdigest()
    source: Any = getattr(item, "source", item)
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, str | Path):
        return _hash_path(os.fspath(source))
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return hashlib.sha256(f"{source.dtype}{source.shape}\0".encode() + source.tobytes()).hexdigest()
    return _hash_picture(_picture_of(source, ""))


def _open(source: Media, name: str, where: str) -> PILImage:
    if not isinstance(source, str | Path | bytes):
        return _picture_of(source, where)
    if source == b"":
        raise BadSampleError("empty-file", f"{_at(where)}expected a picture, found no bytes at all; leave the row out")
    try:
        return PIL.Image.open(BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise _missing(str(source), where) from None
    except UnidentifiedImageError:
        if not isinstance(source, bytes) and Path(source).stat().st_size == 0:
            raise BadSampleError("empty-file", f"{_at(where)}{name} is empty (0 bytes); copy it again") from None
        raise BadSampleError(
            "unreadable-image", f"{_at(where)}{name} is not a picture in a known format; convert it or leave it out"
        ) from None
    except _BOMB as error:
        raise BadSampleError("bomb-image", f"{_at(where)}{name} is too large to decode safely: {error}") from None
    except _DAMAGE as error:
        if "null byte" in str(error):
            raise _missing(repr(source), where) from None
        raise _damaged(error, name, where) from None


def _picture_of(source: Any, where: str) -> PILImage:
    """A decoded picture: Pillow's, or pixels as numpy holds them."""
    if isinstance(source, PIL.Image.Image):
        return source
    found = type(source).__name__
    if isinstance(source, np.ndarray):
        if source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3 and source.size:
            return PIL.Image.fromarray(source)
        found = f"an array of {source.dtype} {source.shape}"
    raise BadSampleError(
        "wrong-type",
        f"{_at(where)}expected a path, the bytes of a file, a Pillow picture or an array of uint8 (H, W, 3), "
        f"found {found}",
    )


def _check_size(picture: PILImage, name: str, where: str) -> None:
    width, height = picture.size
    if width == 0 or height == 0:
        raise BadSampleError("empty-image", f"{_at(where)}{name} has no pixels ({width} x {height}); leave it out")
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _bomb(width, height, name, where)


def _upright(picture: PILImage) -> PILImage:
    try:
        turn = _UPRIGHT.get(picture.getexif().get(EXIF_ORIENTATION, 1))
    except _DAMAGE:  # a picture with broken EXIF is still a picture
        return picture
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: PILImage) -> PILImage:
    if picture.mode.startswith("I") or picture.mode == "F":
        return PIL.Image.fromarray(_eight_bits(picture)).convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", seen.size, "white")
        return PIL.Image.alpha_composite(white, seen).convert("RGB")
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()


def _eight_bits(picture: PILImage) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Deep grey scaled to 0..255: by the full range of its type where the values fit it, else by their own range."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    full = 1.0 if picture.mode == "F" else 65535.0
    if low < 0 or high > full:
        values, full = values - low, high - low
    return np.rint(values * (255.0 / full)).astype(np.uint8)


def _hash_path(path: str) -> str:
    try:
        status = os.stat(path)
        if os.path.isdir(path):
            inner = [f"{entry}\0{_hash_path(os.path.join(path, entry))}\n" for entry in sorted(os.listdir(path))]
            return hashlib.sha256("".join(inner).encode()).hexdigest()
        # A file changed a moment ago can change again within one tick of its time stamp.
        if time.time() - status.st_mtime < _FRESH_S:
            return _hash_file.__wrapped__(path, status.st_size, status.st_mtime_ns)
        return _hash_file(path, status.st_size, status.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, "") from None
    except ValueError:
        raise _missing(repr(path), "") from None
    except OSError as error:
        raise _damaged(error, path, "") from None


@functools.lru_cache(maxsize=1 << 17)
def _hash_file(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_picture(picture: PILImage) -> str:
    try:
        body = picture.tobytes()
        orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    except _BOMB:
        raise _bomb(picture.width, picture.height, _name(picture), "") from None
    except _DAMAGE as error:
        raise _damaged(error, _name(picture), "") from None
    palette = picture.getpalette() if picture.mode in ("P", "PA") else None
    head = (picture.mode, picture.size, orientation, palette, picture.info.get("transparency"))
    return hashlib.sha256(repr(head).encode() + b"\0" + body).hexdigest()


def _name(source: Media) -> str:
    if isinstance(source, bytes):
        return f"a picture of {len(source)} bytes"
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or "a Pillow picture")


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _missing(path: str, where: str) -> BadSampleError:
    if path.startswith(("http://", "https://")):
        return BadSampleError("missing-file", f"{_at(where)}expected a file, found the web address {path}; download it")
    return BadSampleError("missing-file", f"{_at(where)}there is no file {path}; check the path")


def _bomb(width: int, height: int, name: str, where: str) -> BadSampleError:
    return BadSampleError(
        "bomb-image",
        f"{_at(where)}{name} has {width} x {height} pixels, more than the {PIL.Image.MAX_IMAGE_PIXELS} that are "
        "decoded safely; make it smaller",
    )


def _damaged(error: Exception, name: str, where: str) -> BadSampleError:
    if isinstance(error, IsADirectoryError):
        return BadSampleError("unreadable-image", f"{_at(where)}expected a picture, found the folder {name}")
    if isinstance(error, PermissionError):
        return BadSampleError("unreadable-image", f"{_at(where)}{name} may not be read; change its permissions")
    text = str(error).lower()
    if isinstance(error, EOFError) or any(word in text for word in ("truncated", "incomplete", "not enough", "eof")):
        return BadSampleError("truncated-image", f"{_at(where)}{name} ends too early ({error}); copy it again")
    return BadSampleError("unreadable-image", f"{_at(where)}{name} cannot be decoded ({error}); copy or convert it")
