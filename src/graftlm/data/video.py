"""Films as frames: a few pictures, evenly spread, of a folder of frames, an animated picture or a film file.

A folder's frames are its pictures in the order of their names, numbers by their value. Animated pictures (GIF, WebP,
APNG), and still ones as films of one frame, are read by Pillow; films (MP4, WebM, MKV and so on) by PyAV, the extra
``graftlm[video]``, from their beginning to the last frame that is wanted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from PIL.Image import DecompressionBombError, DecompressionBombWarning
from PIL.Image import Image as PILImage

from graftlm.data.media import load_image
from graftlm.data.rows import frame_files
from graftlm.data.sentence import Media
from graftlm.errors import BadSampleError, MissingExtraError

if TYPE_CHECKING:
    import numpy.typing as npt

_MILLISECONDS = 1000.0
_BLACK_PX = 224
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, ArithmeticError)
_BOMB = (DecompressionBombError, DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a film are looked at.

    Attributes:
        frames: how many at most; a shorter film gives all it has
        rate_hz: so many a second (Flamingo §2.1: 1 in training, 3 in use), thinned evenly where that is more than
            `frames`; None: `frames` of them, each from the middle of its part of the film. The frames of a folder
            are taken as they are: it has no clock.
    """

    frames: int = 8
    rate_hz: float | None = None

    def places(self, count: int, seconds: float | None = None) -> list[int]:
        """Numbers of the frames to look at, of `count` that last so many seconds."""
        wanted = count
        if self.rate_hz is not None and seconds:
            wanted = max(1, round(seconds * self.rate_hz))
        wanted = min(wanted, self.frames, count)
        return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def load_frames(source: Media, sampling: Sampling | None = None, *, where: str = "") -> list[PILImage]:
    """The frames of a film as upright 8-bit RGB pictures, in order; at least one.

    `source`: a folder of frames, a file or its bytes, pixels (F, H, W, 3) or a Pillow picture (one frame); `where`
    opens the message of an error.
    Raises: BadSampleError with reason missing-file, empty-video (a folder without pictures, a film without frames),
        unreadable-frame (one frame of a folder), unreadable-video, bomb-image or wrong-type; MissingExtraError for a
        film without PyAV.
    """
    sampling = sampling or Sampling()
    at = f"{where}: " if where else ""
    if isinstance(source, np.ndarray):
        return _of_pixels(source, sampling, at)
    if isinstance(source, PILImage):
        return [load_image(source, where=where)]
    if isinstance(source, str | Path) and os.path.isdir(source):
        return _of_folder(Path(source), sampling, at)
    name = f"a film of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        return _of_file(source, sampling, name, at)
    except _BOMB as error:
        raise BadSampleError("bomb-image", f"{at}{name} is too large to decode safely: {error}") from None
    except FileNotFoundError:
        raise BadSampleError("missing-file", f"{at}there is no film {name}; check the path") from None
    except _DAMAGE as error:
        message = f"{at}{name} cannot be decoded as a film ({error}); copy or convert it"
        raise BadSampleError("unreadable-video", message) from None


def black_film(like: Media) -> npt.NDArray[np.uint8]:
    """A black film for the blind control, of as many frames as `Sampling` looks at in `like`.

    A folder and pixels are asked how many they have; a file is not read for it and counts as long enough. Films of one
    length are one object.
    Shapes: (F, 224, 224, 3)
    """
    count = Sampling().frames
    if isinstance(like, np.ndarray):
        count = len(like)
    elif isinstance(like, PILImage):
        count = 1
    elif isinstance(like, str | Path) and os.path.isdir(like):
        count = len(frame_files(Path(like)))
    return _black_frames(min(count, Sampling().frames))


@functools.cache
def _black_frames(count: int) -> npt.NDArray[np.uint8]:
    return np.zeros((count, _BLACK_PX, _BLACK_PX, 3), dtype=np.uint8)


def _of_folder(folder: Path, sampling: Sampling, at: str) -> list[PILImage]:
    try:
        files = frame_files(folder)
    except OSError as error:
        message = f"{at}the folder {folder} cannot be read ({error.strerror}); change its permissions"
        raise BadSampleError("unreadable-video", message) from None
    frames = []
    for place in sampling.places(len(files)):
        try:
            frames.append(load_image(files[place]))
        except BadSampleError as error:
            raise BadSampleError("unreadable-frame", f"{at}frame {place + 1} of {len(files)}: {error}") from None
    return frames


def _of_pixels(pixels: Any, sampling: Sampling, at: str) -> list[PILImage]:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise BadSampleError("wrong-type", f"{at}expected a film as an array of uint8 (F, H, W, 3), found {found}")
    return [PIL.Image.fromarray(pixels[place]) for place in sampling.places(len(pixels))]


def _of_file(source: str | Path | bytes, sampling: Sampling, name: str, at: str) -> list[PILImage]:
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if not size:
        raise BadSampleError("empty-video", f"{at}{name} is empty (0 bytes); copy it again")
    try:
        picture = PIL.Image.open(BytesIO(source) if isinstance(source, bytes) else source)
    except PIL.UnidentifiedImageError:
        return _of_film(source, sampling, name, at)
    with picture:
        return _of_animation(picture, sampling)


def _of_animation(picture: PILImage, sampling: Sampling) -> list[PILImage]:
    count = getattr(picture, "n_frames", 1)
    seconds = sum(_duration_s(picture, place) for place in range(count)) if sampling.rate_hz is not None else None
    frames = []
    for place in sampling.places(count, seconds):
        picture.seek(place)
        frames.append(load_image(picture))
    return frames


def _duration_s(picture: PILImage, place: int) -> float:
    picture.seek(place)
    return float(picture.info.get("duration", 0)) / _MILLISECONDS


def _of_film(source: str | Path | bytes, sampling: Sampling, name: str, at: str) -> list[PILImage]:
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise MissingExtraError("av", "video", f"{at}reading the film {name}") from None
    try:
        return _decoded(av, source, sampling, name, at)
    except av.FFmpegError as error:
        message = f"{at}{name} cannot be decoded as a film ({error.strerror or error}); copy or convert it"
        raise BadSampleError("unreadable-video", message) from None


def _decoded(av: Any, source: str | Path | bytes, sampling: Sampling, name: str, at: str) -> list[PILImage]:
    """Counts the frames of a film, then decodes those that are wanted."""
    with av.open(_opened(source)) as film:
        stream = next(iter(film.streams.video), None)
        if stream is None:
            raise BadSampleError("empty-video", f"{at}expected a film with pictures, found none in {name}")
        limit = PIL.Image.MAX_IMAGE_PIXELS
        if limit is not None and stream.width * stream.height > limit:
            message = f"{at}{name} has {stream.width} x {stream.height} pixels, more than the {limit} decoded safely"
            raise BadSampleError("bomb-image", message)
        count = sum(packet.size > 0 for packet in film.demux(stream))  # reads the file, decodes nothing
        rate = float(stream.average_rate or 0)
    if not count:
        raise BadSampleError("empty-video", f"{at}expected frames in the film {name}, found none")
    places = sampling.places(count, count / rate if rate else None)
    with av.open(_opened(source)) as film:
        film.streams.video[0].thread_type = "AUTO"
        frames = [_upright(frame) for frame in _picked(film.decode(video=0), places)]
    if not frames:
        raise BadSampleError("unreadable-video", f"{at}expected frames in the film {name}, found none to decode")
    return frames


def _picked(frames: Iterable[Any], places: Sequence[int]) -> Iterator[Any]:
    """The frames of these numbers; where the film ends before, as cut files do, what there is."""
    wanted = iter(places)
    place = next(wanted)
    for number, frame in enumerate(frames):
        if number == place:
            yield frame
            place = next(wanted, -1)
            if place < 0:
                return


def _upright(frame: Any) -> PILImage:
    """A decoded frame as RGB, turned as its film says."""
    picture: PILImage = frame.to_image()
    turned = int(getattr(frame, "rotation", 0) or 0)
    return picture.rotate(turned, expand=True) if turned else picture


def _opened(source: str | Path | bytes) -> Any:
    return BytesIO(source) if isinstance(source, bytes) else str(source)
