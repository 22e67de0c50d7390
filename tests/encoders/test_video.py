"""A film is encoded frame by frame, through any encoder of pictures, and cached as one content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graftlm.data.sentence import Image, Text, Video
from graftlm.encoders.toy import ToyEncoder
from graftlm.encoders.video import FrameEncoder
from graftlm.errors import BadSampleError, DataError
from graftlm.features import CachedEncoder
from tests.pictures import picture


def film(seed: int, frames: int) -> Video:
    return Video(np.stack([np.asarray(picture(seed * 100 + number)) for number in range(frames)]))


def test_frames_are_what_the_encoder_sees_in_each_of_them() -> None:
    encoder = ToyEncoder()
    (one,) = FrameEncoder(encoder, frames=4).encode([film(1, 4)]).by_frame(4)[0]  # (4, 4, Dv)
    alone = encoder.encode([Image(picture(100 + number)) for number in range(4)])
    torch.testing.assert_close(one, alone.tokens)


def test_a_shorter_film_has_fewer_frames_and_the_same_features_as_alone() -> None:
    encoder = FrameEncoder(ToyEncoder(), frames=5)
    films = [film(1, 2), film(2, 5), Image(picture(7))]
    together = encoder.encode(films)
    assert together.tokens.shape == (3, 20, 16)
    tokens, mask = together.by_frame(encoder.frame_positions)
    assert mask.any(-1).sum(-1).tolist() == [2, 5, 1]
    for row, part in enumerate(films):
        alone = encoder.encode([part])
        frames = alone.tokens.shape[1] // 4
        torch.testing.assert_close(tokens[row, :frames].flatten(0, 1), alone.tokens[0])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
    assert not together.tokens[0, 8:].any()


def test_pooled_is_the_mean_over_the_frames_that_are_there() -> None:
    encoder = ToyEncoder()
    found = FrameEncoder(encoder, frames=8).encode([film(3, 3), film(4, 8)])
    frames = encoder.encode([Image(picture(300 + number)) for number in range(3)])
    torch.testing.assert_close(found.pooled[0], frames.pooled.mean(0))


def test_what_was_sampled_is_part_of_the_fingerprint() -> None:
    found = {
        FrameEncoder(ToyEncoder(seed), frames, rate_hz).fingerprint
        for seed, frames, rate_hz in ((0, 8, None), (1, 8, None), (0, 4, None), (0, 8, 1.0))
    }
    assert len(found | {ToyEncoder().fingerprint}) == 5
    assert FrameEncoder(ToyEncoder()).fingerprint == FrameEncoder(ToyEncoder()).fingerprint


def test_the_cache_keeps_films_and_their_frames(tmp_path: Path) -> None:
    encoder = FrameEncoder(ToyEncoder(), frames=5)
    films = [film(1, 2), film(2, 5)]
    cached = CachedEncoder(encoder, tmp_path)
    stats = cached.build([*films, films[0]], quiet=True)
    assert (stats.num_different, stats.num_computed, stats.modality) == (2, 2, "video")
    again = CachedEncoder(FrameEncoder(ToyEncoder(), frames=5), tmp_path)
    assert again.build(films, quiet=True).num_computed == 0
    found, direct = again.encode(films), encoder.encode(films)
    torch.testing.assert_close(found.tokens.float(), direct.tokens, atol=1e-3, rtol=1e-3)
    assert torch.equal(found.mask, direct.mask)
    short = again.encode(films[:1])
    assert again.frame_positions == 4
    assert short.by_frame(4)[0].shape[1] == 2


def test_frames_are_told_apart_where_the_last_positions_are_cut_off() -> None:
    whole = FrameEncoder(ToyEncoder(), frames=3).encode([film(1, 3)])
    cut = type(whole)(whole.tokens[:, :10], whole.mask[:, :10], whole.pooled)
    tokens, mask = cut.by_frame(4)
    assert tokens.shape == (1, 3, 4, 16)
    assert mask[0].sum(-1).tolist() == [4, 4, 2]
    torch.testing.assert_close(tokens[0, :2], whole.by_frame(4)[0][0, :2])


def test_gradients_reach_the_encoder_of_pictures() -> None:
    encoder = FrameEncoder(ToyEncoder(), frames=3)
    encoder(encoder.preprocess([film(1, 2), film(2, 3)])).tokens.sum().backward()
    assert encoder.encoder.patch.weight.grad.abs().sum() > 0


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    encoder = FrameEncoder(ToyEncoder())
    with pytest.raises(DataError, match="type video, found one of type text"):
        encoder.encode([Text("no film")])
    (tmp_path / "empty").mkdir()
    told: list[int] = []
    stats = CachedEncoder(encoder, tmp_path / "features").build(
        [film(1, 1), Video(tmp_path / "empty")], on_bad=lambda place, _: told.append(place), quiet=True
    )
    assert told == [1]
    assert isinstance(stats.bad[1], BadSampleError)
    assert stats.bad[1].reason == "empty-video"
