"""Context parallelism with dropout of attention probabilities: the mask of one process, whoever has the keys."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ptm_dist.kernels.attention import AttentionDrop
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.seen import Seen
from ptm_dist.models.attention import SdpaMixer, Sight, Window
from ptm_dist.parallel.attention_kernels import CpuKernel, PlainKernel, TritonKernel, kernel_for
from ptm_dist.parallel.context import RingMixer, context_mixer, window
from ptm_dist.parallel.mesh import RankGroup
from tests.distributed import run_distributed
from tests.kernels.attention_cases import a_drop, plain_kept
from tests.ptm_dist.test_context import BATCH, CPU, METHODS, deviation, everyone, inputs, sights, with_gradients

LENGTHS = (48, 64, 13, 3)
"""Chunks of 12 or 8, and of 16 or uneven ones: keys in octets over one number of ranks and not over the other."""


def explicit(sight: Sight, drop: AttentionDrop, tensors):
    """Softmax times the mask times values, in one process."""
    everywhere = torch.arange(tensors[0].shape[2])
    mask = sight.mask(everywhere, everywhere)

    def function(query, key, value):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        weights = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)
        return (weights * plain_kept(drop, query.shape[1]).to(weights.dtype) * drop.scale) @ value

    return with_gradients(function, tensors)


def mixed(mixer, sight: Sight, held: Window, drop: AttentionDrop, tensors):
    """Of this rank's positions."""
    seen = mixer.prepare(sight, held)
    here = replace(drop, queries=held.positions, keys=held.positions)
    shares = [tensor[:, :, held.positions] for tensor in tensors]
    return with_gradients(lambda query, key, value: mixer.mix(query, key, value, seen, here), shares)


def deviations(methods, lengths, heads, dtype):
    """From :func:`explicit` in float64, and that of the same in `dtype`, by case."""
    ranks, found = everyone(), {}
    for length, count in itertools.product(lengths, heads):
        held, tensors = window(length, ranks, CPU), inputs(length, count, dtype)
        drop = a_drop(BATCH, length, length, in_octets=False)
        for name, sight in sights(length).items():
            expected = explicit(sight, drop, [tensor.double() for tensor in tensors])
            usual = deviation(explicit(sight, drop, tensors), expected)
            expected = [tensor[:, :, held.positions] for tensor in expected]
            for method in methods:
                mixer = context_mixer(method, ranks, drops=True)
                got = mixed(mixer, sight, held, drop, tensors)
                found[method, name, length, count] = (deviation(got, expected), usual)
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_every_layout_drops_what_one_process_drops(world):
    for cases in run_distributed(deviations, world, METHODS, LENGTHS, (4, 1), torch.float64):
        assert len(cases) == len(METHODS) * 6 * len(LENGTHS) * 2
        # Only the order of sums differs.
        assert {case: error for case, (error, _) in cases.items() if not error < 1e-13} == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_ranks_lose_no_more_digits_than_one(dtype):
    for cases in run_distributed(deviations, 2, METHODS, (64,), (4,), dtype):
        assert {case: pair for case, pair in cases.items() if not pair[0] < 2 * pair[1]} == {}


def test_one_process_drops_what_its_mask_says():
    length, count = 45, 3
    whole, tensors = Window.whole(length, CPU), inputs(length, count, torch.float64)
    drop = a_drop(BATCH, length, length, in_octets=False)
    for name, sight in sights(length).items():
        found = mixed(SdpaMixer(drops=True), sight, whole, drop, tensors)
        assert deviation(found, explicit(sight, drop, tensors)) < 1e-13, name


def test_some_heads_drop_what_all_of_them_do():
    length = 24
    whole, tensors = Window.whole(length, CPU), inputs(length, 4, torch.float64)
    drop, sight = a_drop(BATCH, length, length), Sight(causal=True)
    together = mixed(SdpaMixer(drops=True), sight, whole, drop, tensors)
    share = mixed(
        SdpaMixer(drops=True),
        sight,
        whole,
        replace(drop, first_head=drop.first_head + 2),
        [tensor[:, 2:] for tensor in tensors],
    )
    assert deviation(share, [tensor[:, 2:] for tensor in together]) < 1e-14


@pytest.mark.parametrize("length", range(1, 100))
def test_keys_of_a_rank_are_in_octets_where_that_is_said(length):
    said = 0
    for size in (1, 2, 3):
        alone = RankGroup(None, 0, size)
        rounds = RingMixer(alone).prepare(Sight(causal=True), window(length, alone, CPU))
        for hops, drop in enumerate(rounds.drops(a_drop(1, length, length))):
            for tile in rounds.tiles[hops] if drop.in_octets else []:
                keys = drop.keys[tile.keys]
                starts = keys[::8].repeat_interleave(8)[: len(keys)]
                assert torch.equal(keys, starts + torch.arange(len(keys)) % 8) and not (starts % 8).any()
                said += 1
    assert said >= (length % 16 == 0)


def test_what_drops_is_computed_by_a_form_that_can():
    query, key, value, _ = inputs(16, 2, torch.float32)
    drop = a_drop(BATCH, 16, 16)
    assert isinstance(kernel_for(query, key, value, Seen()), CpuKernel)
    assert isinstance(kernel_for(query, key, value, Seen(drop=drop)), PlainKernel)
    asked = Choice({Operation.ATTENTION: Form.TRITON})
    assert isinstance(kernel_for(query, key, value, Seen(drop=drop), asked), TritonKernel)
    assert isinstance(kernel_for(query, key, value, Seen(), asked), CpuKernel)
