"""Masks of dropout: the same bits however they are drawn, and as good as independent ones."""

from __future__ import annotations

import math

import pytest
import torch

from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.masks import at_least
from ptm_dist.kernels.philox import threshold, uniform16

KEY = torch.tensor([0xFEDCBA98, 0xFFFFFFFF])


@pytest.mark.parametrize(
    ("batch", "seq", "size"),
    [(1, 1, 1), (2, 3, 47), (3, 5, 96), (2, 25, 4099), (1, 2, 140_000), (2, 0, 8)],
    ids=["one number", "odd size", "whole octets", "more than one chunk", "a row longer than a chunk", "no rows"],
)
@pytest.mark.parametrize("least", [0, 6554, 65535])
def test_the_cache_wise_form_gives_the_bits_of_the_plain_one(batch, seq, size, least):
    samples = torch.tensor([0, 2**32 - 1, 2**31])[:batch, None]
    counter = (torch.arange(seq)[None] + 2**31 - 1, samples, torch.tensor([[3]]))
    expected = uniform16(counter, size, (KEY[0], KEY[1])) >= least
    found = at_least(least, counter, size, KEY)
    assert found.dtype == torch.bool and torch.equal(found, expected)


def test_a_compiler_sees_the_same_bits():
    drop = Drop(0.3, KEY, torch.arange(3), torch.arange(5))
    compiled = torch.compile(lambda: drop.kept(20), backend="eager", fullgraph=True)
    assert torch.equal(compiled(), drop.kept(20))


def a_mask(*, probability: float = 0.25, key: tuple[int, int] = (7, 9), first_sample: int = 0, first_position: int = 0):
    """256 samples, 16 positions, 64 features."""
    samples, positions = torch.arange(256) + first_sample, torch.arange(16) + first_position
    return Drop(probability, torch.tensor(key), samples, positions).kept(64)


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_probability(probability):
    dropped = ~a_mask(probability=probability)
    share = threshold(probability) / 65536
    assert abs(share - probability) < 1 / 65536
    deviation = math.sqrt(share * (1 - share) / dropped.numel())
    assert abs(dropped.double().mean() - share) < 5 * deviation


@pytest.mark.parametrize(
    "other",
    [
        {"key": (8, 9)},
        {"key": (7, 10)},
        {"key": (7 + (1 << 31), 9)},
        {"first_sample": 1},
        {"first_position": 1},
        {"first_sample": 1 << 31},
    ],
    ids=str,
)
def test_neighbouring_masks_are_not_correlated(other):
    first, second = a_mask().flatten().double(), a_mask(**other).flatten().double()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    # Of n independent pairs it has the deviation 1 / sqrt(n).
    assert abs(correlation) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("distance", [1, 2, 7, 8, 9])
def test_features_are_not_correlated(distance):
    mask = a_mask().double()
    pair = torch.stack([mask[..., distance:].flatten(), mask[..., :-distance].flatten()])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(pair.shape[1])
