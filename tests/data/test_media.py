"""Pictures in every shape they come in, and the hash of what a media item holds."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Image as PILImage

from graftlm.data.media import black_image, content_hash, load_image, pixels
from graftlm.data.sentence import Audio, Image, Sentence, State, Text, Video
from graftlm.errors import BadSampleError
from tests.pictures import picture


def encoded(image: PILImage, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def centre(image: PILImage) -> tuple[int, ...]:
    found = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(found, tuple)
    return found


def reason(source: object, where: str = "") -> str:
    with pytest.raises(BadSampleError) as caught:
        load_image(source, where=where)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{where}: ") or not where
    return caught.value.reason


def test_a_path_a_string_bytes_and_a_pillow_picture_give_the_same_pixels(tmp_path: Path) -> None:
    image = picture(0)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, PIL.Image.open(path)):
        assert load_image(source).tobytes() == image.tobytes()


def test_a_pillow_picture_is_not_shared_with_the_caller() -> None:
    image = picture(0)
    load_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "LAB", "HSV", "P", "RGBA", "LA", "PA", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = picture(0).convert("L") if mode in ("I", "F", "LA", "PA") else picture(0)
    found = load_image(image.convert("RGB").convert("LA") if mode == "PA" else image.convert(mode))
    assert found.mode == "RGB"
    assert found.size == image.size


def test_cmyk_files_keep_their_colours() -> None:
    red = PIL.Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    found = centre(load_image(encoded(red, "JPEG", quality=95)))
    assert abs(found[0] - 200) < 12
    assert max(found[1:]) < 60


def test_transparency_is_laid_on_white() -> None:
    clear = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    grey = PIL.Image.new("LA", (4, 4), (0, 0))
    assert centre(load_image(encoded(clear))) == (255, 255, 255)
    assert centre(load_image(encoded(half))) == (127, 127, 127)
    assert centre(load_image(encoded(grey))) == (255, 255, 255)


def test_a_transparent_palette_entry_is_white() -> None:
    image = PIL.Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(image, transparency=0)
    assert centre(load_image(data)) == (255, 255, 255)
    assert centre(load_image(encoded(image))) == (255, 0, 0)


def test_a_transparent_colour_of_an_rgb_file_is_white() -> None:
    data = encoded(PIL.Image.new("RGB", (4, 4), (10, 20, 30)), transparency=(10, 20, 30))
    assert centre(load_image(data)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    found = np.asarray(load_image(encoded(PIL.Image.fromarray(values), kind)))
    assert found.shape == (16, 16, 3)
    assert np.array_equal(found[..., 0].ravel(), np.arange(256))


def test_grey_values_beyond_16_bits_are_scaled_by_their_own_range() -> None:
    values = np.array([[-1000, 0], [0, 1000]], dtype=np.int32)
    assert np.asarray(load_image(PIL.Image.fromarray(values)))[..., 0].tolist() == [[0, 128], [128, 255]]


def test_floats_in_zero_to_one_are_scaled_and_nan_is_black() -> None:
    values = np.array([[0.0, 0.5], [1.0, np.nan]], dtype=np.float32)
    assert np.asarray(load_image(PIL.Image.fromarray(values)))[..., 0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone_as_pillow_does(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    image = picture(1).resize((48, 32))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    expected = ImageOps.exif_transpose(PIL.Image.open(path))
    found = load_image(path)
    assert found.size == ((48, 32) if orientation < 5 else (32, 48))
    assert found.tobytes() == expected.tobytes()


def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = encoded(picture(0), "JPEG", exif=b"Exif\0\0not a tiff header at all")
    assert load_image(data).size == (32, 32)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert centre(load_image(path)) == (255, 0, 0)


def test_a_missing_file_a_folder_and_a_web_address_are_told_apart(tmp_path: Path) -> None:
    assert reason(tmp_path / "no.png", where="rows.jsonl line 3") == "missing-file"
    assert reason("https://example.com/a.png") == "missing-file"
    assert reason("a\0b.png") == "missing-file"
    assert reason(tmp_path) == "unreadable-image"


def test_empty_files_and_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    assert reason(tmp_path / "empty.jpg") == "empty-file"
    assert reason(b"") == "empty-file"
    assert reason(tmp_path / "text.jpg", where="x.tsv line 1") == "unreadable-image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_truncated_files_are_refused(kind: str, fraction: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(PIL.Image.fromarray(noise), kind)
    assert reason(data[: int(len(data) * fraction)]) == "truncated-image"


def test_a_lazily_opened_truncated_pillow_picture_is_refused() -> None:
    data = encoded(picture(0, 256), "JPEG")
    assert reason(PIL.Image.open(BytesIO(data[: len(data) // 2]))) == "truncated-image"


@pytest.mark.parametrize("factor", [1.5, 3])
def test_bombs_are_refused_before_they_are_decoded(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    PIL.Image.new("1", (100, 100)).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", int(10_000 / factor))
    assert reason(path) == "bomb-image"
    assert reason(PIL.Image.new("1", (100, 100))) == "bomb-image"


def test_a_picture_without_pixels_is_refused() -> None:
    assert reason(PIL.Image.new("RGB", (0, 5))) == "empty-image"


def test_pixels_are_channels_first() -> None:
    image = PIL.Image.new("RGB", (5, 3), (1, 2, 3))
    found = pixels(image)
    assert found.shape == (3, 3, 5)
    assert found[:, 0, 0].tolist() == [1, 2, 3]


def test_a_file_its_bytes_and_its_copy_have_one_hash(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    picture(0).save(first)
    second.write_bytes(first.read_bytes())
    hashes = {content_hash(item) for item in (first, str(second), first.read_bytes(), Image(first), Image(str(second)))}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_a_file_that_changes_changes_its_hash_even_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    seen = set()
    for number in range(20):
        path.write_bytes(bytes([number]) * 100)
        seen.add(content_hash(path))
    assert len(seen) == 20


def test_an_unchanged_old_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    known = content_hash(path)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert content_hash(path) == known


def test_pillow_pictures_are_known_by_their_pixels() -> None:
    image = picture(0)
    assert content_hash(image) == content_hash(image.copy())
    assert content_hash(image) != content_hash(picture(1))
    assert content_hash(PIL.Image.new("RGB", (4, 6))) != content_hash(PIL.Image.new("RGB", (6, 4)))
    assert content_hash(PIL.Image.new("L", (2, 2))) != content_hash(PIL.Image.new("P", (2, 2)))


def test_states_texts_sounds_and_films_have_hashes(tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    (tmp_path / "film" / "1.png").write_bytes(b"one")
    before = content_hash(Video(tmp_path / "film"))
    (tmp_path / "film" / "2.png").write_bytes(b"two")
    found = [content_hash(State((1.0, 2.0))), content_hash(Text("a")), content_hash(Audio(b"a")), before]
    assert len({*found, content_hash(Video(tmp_path / "film")), content_hash(State((2.0, 1.0)))}) == 6


def test_the_hash_of_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError) as caught:
        content_hash(tmp_path / "no.png")
    assert caught.value.reason == "missing-file"


def test_the_black_picture_is_black_and_always_the_same() -> None:
    assert content_hash(black_image()) == content_hash(black_image())
    assert np.asarray(black_image()).max() == 0
    assert black_image(picture(0).resize((9, 7))).size == (9, 7)


PIXELS = np.asarray(picture(0))


def test_pixels_in_an_array_are_a_picture() -> None:
    assert load_image(PIXELS).tobytes() == picture(0).tobytes()
    assert content_hash(Image(PIXELS)) == content_hash(picture(0))
    found = Sentence.from_json(Sentence((Image(PIXELS),)).to_json()).media()[0]
    assert isinstance(found, Image)
    assert load_image(found.source).tobytes() == picture(0).tobytes()


WRONG: dict[str, object] = {
    "a number": 3,
    "nothing": None,
    "a list": ["a.png"],
    "an array of floats": PIXELS / 255,
    "an array with alpha": np.zeros((4, 4, 4), np.uint8),
    "an array of three planes": np.zeros((3, 8, 8), np.uint8),
    "an empty array": np.zeros((0, 4, 3), np.uint8),
    "a file object": BytesIO(b"x"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_at_all_is_refused_with_what_is(kind: str) -> None:
    assert reason(WRONG[kind], "row 3") == "wrong-type"
    with pytest.raises(BadSampleError, match="expected a path, the bytes of a file, a Pillow picture or an array"):
        content_hash(Image(WRONG[kind]))  # type: ignore[arg-type]
