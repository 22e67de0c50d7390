"""Films give evenly spread frames, whatever they are kept in; what is broken is one sentence."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from graftlm.data.media import content_hash
from graftlm.data.sentence import Image, Video
from graftlm.data.video import Sampling, load_frames
from graftlm.errors import BadSampleError, MissingExtraError
from tests.data.readers import files

STEP = 10
"""Frame n of the films below is grey of 10 n."""


def grey(number: int, size: int = 32) -> Pillow.Image:
    return Pillow.new("RGB", (size, size), (number * STEP,) * 3)


def numbers(frames: Sequence[Pillow.Image]) -> list[int]:
    """Which frames these are."""
    assert all(frame.mode == "RGB" for frame in frames)
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in frames]


def folder_of(path: Path, count: int, name: str = "{}.png") -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        grey(number).save(path / name.format(number))
    return path


def gif(count: int, milliseconds: int = 500) -> bytes:
    buffer = io.BytesIO()
    first, *others = [grey(number) for number in range(count)]
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=milliseconds)
    return buffer.getvalue()


def mp4(path: Path, count: int, rate_hz: int = 8, size: int = 64) -> Path:
    """A film file; the test skips where there is no PyAV."""
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=rate_hz)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.asarray(grey(number, size)), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [(8, 4, [1, 3, 5, 7]), (9, 3, [1, 4, 7]), (3, 8, [0, 1, 2]), (1, 8, [0]), (100, 1, [50]), (5, 2, [1, 3])],
)
def test_frames_come_from_the_middle_of_equal_parts(count: int, frames: int, expected: list[int]) -> None:
    assert Sampling(frames).places(count) == expected


def test_a_rate_asks_for_so_many_frames_a_second_up_to_the_most() -> None:
    assert Sampling(8, rate_hz=1.0).places(24, seconds=3.0) == [4, 12, 20]
    assert Sampling(2, rate_hz=1.0).places(24, seconds=3.0) == [6, 18]
    assert Sampling(8, rate_hz=1.0).places(24, seconds=0.1) == [12]
    assert Sampling(8, rate_hz=100.0).places(4, seconds=2.0) == [0, 1, 2, 3]
    assert Sampling(8, rate_hz=1.0).places(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["{}.png", "frame_{:03}.png", "clip-{}-of-12.png"])
def test_a_folder_gives_its_frames_in_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "clip", 12, name)
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_text("no frame")
    assert numbers(load_frames(folder, Sampling(12))) == list(range(12))
    assert numbers(load_frames(str(folder), Sampling(3))) == [2, 6, 10]


def test_an_animation_is_a_film_and_a_still_picture_one_of_one_frame(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(gif(8))
    assert numbers(load_frames(tmp_path / "a.gif", Sampling(4))) == [1, 3, 5, 7]
    assert numbers(load_frames(gif(8), Sampling(8, rate_hz=1.0))) == [1, 3, 5, 7]  # eight frames in four seconds
    grey(3).save(tmp_path / "still.png")
    assert numbers(load_frames(tmp_path / "still.png")) == [3]
    assert numbers(load_frames(grey(5))) == [5]


def test_pixels_are_a_film() -> None:
    film = np.stack([np.asarray(grey(number)) for number in range(6)])
    assert numbers(load_frames(film, Sampling(3))) == [1, 3, 5]
    for wrong in (film.astype(np.float32), film[:0], film[..., :2]):
        with pytest.raises(BadSampleError, match="uint8 \\(F, H, W, 3\\)") as caught:
            load_frames(wrong)
        assert caught.value.reason == "wrong-type"


def test_a_film_file_is_read_by_pyav(tmp_path: Path) -> None:
    path = mp4(tmp_path / "a.mp4", 24)
    assert numbers(load_frames(path, Sampling(4))) == [3, 9, 15, 21]
    assert numbers(load_frames(path.read_bytes(), Sampling(8, rate_hz=1.0))) == [4, 12, 20]
    assert len(load_frames(str(path), Sampling(100))) == 24
    assert load_frames(path)[0].size == (64, 64)


def test_a_broken_film_file_is_one_sentence(tmp_path: Path) -> None:
    data = mp4(tmp_path / "a.mp4", 24).read_bytes()
    for broken in (data[: len(data) // 2], b"\0" * 4000, b"no film" * 100):
        (tmp_path / "b.mp4").write_bytes(broken)
        with pytest.raises(BadSampleError, match=r"row 7: .*b\.mp4") as caught:
            load_frames(tmp_path / "b.mp4", where="row 7")
        assert caught.value.reason in ("unreadable-video", "empty-video")
        assert "\n" not in str(caught.value)


def test_a_film_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mp4(tmp_path / "a.mp4", 2)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadSampleError, match="64 x 64") as caught:
        load_frames(path)
    assert caught.value.reason == "bomb-image"


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0 ftypisom" + b"\0" * 100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"a\.mp4 needs the package 'av'; run: pip install 'graftlm\[video\]'"):
        load_frames(tmp_path / "a.mp4")


def test_what_is_no_film_is_told_with_its_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", 3)
    (folder / "1.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.mp4").write_bytes(b"")
    found = {}
    for source in (folder, tmp_path / "empty", tmp_path / "zero.mp4", tmp_path / "gone.mp4", b""):
        with pytest.raises(BadSampleError) as caught:
            load_frames(source)
        found[Path(source).name if isinstance(source, Path) else "bytes"] = (caught.value.reason, str(caught.value))
    assert {name: reason for name, (reason, _) in found.items()} == {
        "clip": "unreadable-frame",
        "empty": "empty-video",
        "zero.mp4": "empty-video",
        "gone.mp4": "missing-file",
        "bytes": "empty-video",
    }
    assert "frame 2 of 3" in found["clip"][1]
    assert "1.png" in found["clip"][1]
    assert load_frames(folder, Sampling(2))  # frames 0 and 2: the broken one is not looked at


def test_a_film_is_known_by_its_content_and_is_no_picture(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "one", 3), folder_of(tmp_path / "two", 3)
    other = folder_of(tmp_path / "other", 4)
    assert content_hash(Video(one)) == content_hash(Video(str(two))) != content_hash(Video(other))
    assert content_hash(Video(gif(3))) != content_hash(Image(gif(3)))
    film = np.zeros((2, 4, 6, 3), np.uint8)
    assert content_hash(Video(film)) == content_hash(Video(film.copy()))
    assert content_hash(Video(film)) != content_hash(Video(film.reshape(2, 6, 4, 3)))


def test_a_rotated_frame_stands_upright() -> None:
    from graftlm.data.video import _upright

    class Frame:
        rotation = -90

        def to_image(self) -> Pillow.Image:
            picture = Pillow.new("RGB", (4, 2), "black")
            picture.putpixel((0, 0), (255, 0, 0))
            return picture

    turned = _upright(Frame())
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)  # the upper left corner, turned to the right


def test_films_survive_json(tmp_path: Path) -> None:
    from graftlm.data.sentence import Sentence

    for film in (Video(str(tmp_path / "clip")), Video(gif(2))):
        assert Sentence.from_json(Sentence((film,)).to_json()).parts == (film,)


FILMS: dict[str, tuple[Any, str]] = {
    "a film that is not there": ({"video": "gone.mp4", "captions": ["x"]}, "missing-file"),
    "a folder without frames": ({"video": "empty", "captions": ["x"]}, "empty-video"),
    "a web address": ({"video": "https://example.org/a.mp4", "caption": "x"}, "remote-file"),
    "no film named": ({"captions": ["x"]}, "missing-column"),
    "no caption": ({"video": "clip"}, "missing-column"),
    "an empty caption": ({"video": "clip", "caption": " "}, "empty-caption"),
    "the same row again": ({"video": "good", "captions": ["good"]}, "duplicate-id"),
}


@pytest.mark.parametrize("case", FILMS)
def test_a_bad_row_of_films_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    from graftlm.data.ledger import Ledger
    from graftlm.data.readers import read_all

    row, reason = FILMS[case]
    for name in ("good", "clip"):
        folder_of(tmp_path / "frames" / name, 2)
    (tmp_path / "frames" / "empty").mkdir()
    path = files.jsonl(tmp_path / "films.jsonl", [{"video": "good", "captions": ["good"]}, row])
    ledger = Ledger()
    assert len(read_all({"path": str(path)}, ledger)) == 1
    assert [(entry.reason, entry.row) for entry in ledger.entries] == [(reason, 2)]
    assert "film" in ledger.entries[0].message or reason not in ("missing-file",)


def test_captioned_films_are_read_as_photos_are(tmp_path: Path) -> None:
    from graftlm.data.readers import detect, read_all

    folder_of(tmp_path / "videos" / "clip", 2)
    (tmp_path / "videos" / "b.gif").write_bytes(gif(2))
    rows = [
        {"video": "clip/", "split": "train", "captions": ["a man .", "a man runs ."]},
        {"video": "b.gif", "split": "val", "caption": "a dog ."},
    ]
    path = files.jsonl(tmp_path / "films.jsonl", rows)
    assert detect(str(tmp_path)) == "videos"
    found = read_all({"path": str(path), "tidy": True})
    assert [sample.sentence.targets().text() for sample in found] == ["a man.", "a man runs.", "a dog."]
    assert found[0].sentence.parts[0] == Video(str(tmp_path / "videos" / "clip"))
    (one,) = read_all({"path": str(path), "split": "val", "per": "media", "videos": str(tmp_path / "videos")})
    assert (one.key, one.references) == ("b.gif", ("a dog .",))
