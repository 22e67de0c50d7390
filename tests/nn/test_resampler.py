"""The resampler: any number of positions and frames, times between the learnt ones, and what each latent reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graftlm.nn.attention import Geometry
from graftlm.nn.flamingo_variants import VARIANTS
from graftlm.nn.resampler import PerceiverResampler

WIDTH, PLACES = 24, 4
GEOMETRY = Geometry(heads=3, head_dim=8, dense_dim=48)


def resampler(num_frames: int = 0, depth: int = 2) -> PerceiverResampler:
    torch.manual_seed(0)
    return PerceiverResampler(WIDTH, GEOMETRY, num_latents=5, depth=depth, num_frames=num_frames)


def context(frames: int = 1, places: int = PLACES) -> tuple[Tensor, Tensor]:
    tokens = torch.randn(2, frames * places, WIDTH, generator=torch.Generator().manual_seed(frames))
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


def test_of_small_latents_more_of_a_picture_comes_out() -> None:
    def told(scale: float) -> float:
        torch.manual_seed(0)
        part = PerceiverResampler(WIDTH, GEOMETRY, num_latents=5, depth=1, latent_scale=scale)
        with torch.no_grad():
            return float(part(*context()).std(dim=0).mean())

    assert told(0.02) > 2 * told(1.0)


@pytest.mark.parametrize("places", [1, 4, 49, 256])
@pytest.mark.parametrize("frames", [1, 3, 8, 30])
def test_any_number_of_frames_and_positions_becomes_as_many_vectors(frames: int, places: int) -> None:
    assert resampler(num_frames=8)(*context(frames, places), frames).shape == (2, 5, WIDTH)


def test_positions_that_may_not_be_used_change_nothing() -> None:
    tokens, mask = context(places=6)
    mask[:, 4:] = False
    other = tokens.clone()
    other[:, 4:] = 9.0
    part = resampler()
    torch.testing.assert_close(part(tokens, mask), part(tokens[:, :4], mask[:, :4]))
    assert torch.equal(part(tokens, mask), part(other, mask))
    assert not torch.allclose(part(other, mask | True), part(tokens, mask), atol=1e-3)


@pytest.mark.parametrize("num_frames", [0, 8])
def test_the_order_of_frames_counts_where_there_are_times_and_only_there(num_frames: int) -> None:
    part = resampler(num_frames)
    tokens, mask = context(frames=3)
    swapped = tokens.unflatten(1, (3, PLACES)).flip(1).flatten(1, 2)
    same = torch.allclose(part(tokens, mask, 3), part(swapped, mask, 3), atol=1e-5)
    assert same == (num_frames == 0)


def test_times_are_the_learnt_ones_at_their_number_and_lie_between_them_at_others() -> None:
    part = resampler(num_frames=3)
    assert part.times is not None
    for frames, wanted in (
        (1, part.times[:1]),
        (3, part.times),
        (5, torch.stack([part.times[0], part.times[:2].mean(0), part.times[1], part.times[1:].mean(0), part.times[2]])),
    ):
        tokens, mask = context(frames)
        plain = resampler()
        plain.load_state_dict({name: value for name, value in part.state_dict().items() if name != "times"})
        timed = tokens + wanted.repeat_interleave(PLACES, dim=0)
        torch.testing.assert_close(part(tokens, mask, frames), plain(timed, mask, frames))


def test_the_shares_of_the_positions_are_the_layers_own_weights() -> None:
    part = resampler(depth=1)
    tokens, mask = context(places=6)
    mask[:, 5] = False
    shares = part.attention(tokens, mask)
    assert shares.shape == (2, 5, 6)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 5))
    assert not shares[:, :, 5].any()
    layer = part.layers[0]
    latents = part.latents.expand(2, -1, -1)
    queries = layer.attention.to_queries(layer.norm_latents(latents)).unflatten(-1, (3, 8)).transpose(1, 2)
    both = torch.cat([layer.norm_context(tokens), layer.norm_latents(latents)], dim=1)
    keys = layer.attention.to_keys(both).unflatten(-1, (3, 8)).transpose(1, 2)
    scores = (queries @ keys.mT / 8**0.5)[..., :6].masked_fill(~mask[:, None, None], float("-inf"))
    total = (queries @ keys.mT / 8**0.5).masked_fill(~nn.functional.pad(mask, (0, 5), value=True)[:, None, None], -1e9)
    seen = (scores - total.logsumexp(-1, keepdim=True)).exp().mean(1)
    torch.testing.assert_close(shares, seen / seen.sum(-1, keepdim=True))


def test_shares_follow_the_position_that_matters_through_several_layers() -> None:
    part = resampler(depth=3)
    tokens, mask = context(places=6)
    mask[:] = False
    mask[:, 2] = True
    shares = part.attention(tokens, mask)
    torch.testing.assert_close(shares[:, :, 2], torch.ones(2, 5))


@pytest.mark.parametrize(
    ("variant", "dim", "heads", "millions"), [("paper", 1536, 16, 170.0), ("open_flamingo", 1024, 8, 63.0)]
)
def test_the_published_sizes_have_the_published_parameter_counts(
    variant: str, dim: int, heads: int, millions: float
) -> None:
    chosen = VARIANTS[variant]
    geometry = chosen.resampler(dim, heads, width=0, dropout=0.0)
    with torch.device("meta"):
        part = PerceiverResampler(dim, geometry, num_latents=64, depth=6, num_frames=chosen.num_frames)
    assert round(sum(parameter.numel() for parameter in part.parameters()) / 1e6, 1) == millions
