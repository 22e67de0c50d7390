"""An encoder of pictures over the frames of films."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.data.sentence import Image, Video
from graftlm.encoders.frames import FrameEncoder
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import DataError
from tests.pictures import picture

FILMS = {"long": [0, 1, 2], "short": [3]}


def load(source: Any) -> list[Any]:
    return [picture(seed) for seed in FILMS[str(source)]]


def test_a_film_is_what_the_encoder_sees_in_its_frames_side_by_side() -> None:
    encoder = ToyEncoder()
    films = FrameEncoder(encoder, load)
    found = films.encode([Video("long"), Video("short")])
    frames = encoder.encode([Image(picture(seed)) for seed in (0, 1, 2, 3)])
    torch.testing.assert_close(found.tokens[0], frames.tokens[:3].flatten(0, 1))
    torch.testing.assert_close(found.tokens[1, :4], frames.tokens[3])
    assert found.mask.tolist() == [[True] * 12, [True] * 4 + [False] * 8]
    torch.testing.assert_close(found.pooled, torch.stack([frames.pooled[:3].mean(0), frames.pooled[3]]))


def test_gradients_reach_an_encoder_that_is_trained() -> None:
    encoder = ToyEncoder()
    films = FrameEncoder(encoder, load)
    films(films.preprocess([Video("long"), Video("short")])).tokens.sum().backward()
    assert encoder.patch.weight.grad is not None
    assert encoder.patch.weight.grad.isfinite().all()


def test_it_is_known_by_its_frames_and_its_encoder() -> None:
    prints = {FrameEncoder(ToyEncoder(seed), load, most=most).fingerprint for seed in (0, 1) for most in (4, 8)}
    assert len({*prints, ToyEncoder().fingerprint}) == 5
    assert FrameEncoder(ToyEncoder(), load, most=4).num_positions == 16


def test_a_picture_is_no_film() -> None:
    with pytest.raises(DataError, match="video"):
        FrameEncoder(ToyEncoder(), load).encode([Image(picture(0))])
