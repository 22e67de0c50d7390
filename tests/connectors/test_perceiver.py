"""The resampler over features: pictures and films of any length side by side."""

from __future__ import annotations

import torch

from graftlm.connectors.perceiver import Perceiver
from graftlm.encoders.base import Features
from graftlm.nn.attention import Geometry
from graftlm.nn.resampler import PerceiverResampler

PLACES, DIM = 4, 12


def connector(width: int = 8) -> Perceiver:
    torch.manual_seed(0)
    resampler = PerceiverResampler(width, Geometry(2, 4, 16), num_latents=3, depth=2, num_frames=8)
    return Perceiver(DIM, width, resampler, positions_per_frame=PLACES)


def item(frames: int, seed: int) -> Features:
    tokens = torch.randn(1, frames * PLACES, DIM, generator=torch.Generator().manual_seed(seed))
    return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def test_pictures_and_films_of_any_length_are_resampled_as_each_alone() -> None:
    items = [item(3, 0), item(1, 1), item(5, 2), item(1, 3), item(3, 4)]
    part = connector()
    alone = torch.cat([part(one) for one in items])
    torch.testing.assert_close(part(Features.stack(items)), alone)
    assert alone.shape == (5, 3, 8)
    shares = part.attention(Features.stack(items))
    assert shares.shape == (5, 3, 5 * PLACES)
    torch.testing.assert_close(shares[1, :, :PLACES], part.attention(items[1])[0])
    assert not shares[1, :, PLACES:].any()


def test_a_film_is_no_picture_of_all_its_positions() -> None:
    film = item(3, 0)
    as_one = connector()
    as_one.positions_per_frame = 3 * PLACES
    assert not torch.allclose(connector()(film), as_one(film), atol=1e-3)


def test_the_encoders_width_stays_where_no_other_is_wanted() -> None:
    assert not list(connector(width=DIM).reduce.parameters())
    assert connector(width=8).reduce[1].weight.shape == (8, DIM)


def test_a_narrowed_picture_is_read_whatever_the_scale_of_its_features() -> None:
    tokens, part = item(1, 0), connector(width=8)
    loud = Features(tokens.tokens * 100 + 7, tokens.mask, tokens.pooled)
    torch.testing.assert_close(part(loud), part(tokens), atol=1e-3, rtol=0)
