"""Context parallelism: positions of a sequence on several ranks, the same numbers as on one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ptm_dist.models.attention import Sight
from ptm_dist.parallel.context import RingMixer, context_mixer, window, zigzag
from ptm_dist.parallel.mesh import RankGroup
from tests.distributed import run_distributed

METHODS = ("ring", "ulysses")
LENGTHS = (8, 9, 13, 3)
HEADS = (4, 3, 1)
BATCH, HEAD_SIZE = 2, 8
CPU = torch.device("cpu")


def sights(length: int, device: torch.device = CPU) -> dict[str, Sight]:
    """Every way to see that models of this package have, on sequences of a length."""
    places = torch.arange(length, device=device)
    valid = places < torch.tensor([[length], [max(1, length // 2)]], device=device)
    documents = torch.stack([places // 3, (places > 0).long()])
    return {
        "causal": Sight(causal=True),
        "full": Sight(causal=False),
        "band": Sight(causal=True, band=3),
        "padding": Sight(causal=False, valid=valid),
        "documents": Sight(causal=True, documents=documents),
        "documents in a band": Sight(causal=True, band=3, documents=documents),
    }


def everyone() -> RankGroup:
    return RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def inputs(length: int, heads: int, dtype: torch.dtype, device: torch.device = CPU) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output."""
    draw = torch.Generator().manual_seed(length * 10 + heads)
    shape = (BATCH, heads, length, HEAD_SIZE)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype) for _ in range(4)]


def with_gradients(function, tensors):
    """Output and the gradients of queries, keys and values."""
    *leaves, grad = tensors
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def plain_attention(sight: Sight, tensors):
    """By torch in one process."""
    everywhere = torch.arange(tensors[0].shape[2], device=tensors[0].device)
    mask = sight.mask(everywhere, everywhere)
    return with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), tensors)


def deviation(found, expected) -> float:
    """The largest, over some tensors."""
    pairs = zip(found, expected, strict=True)
    return max((one.double() - other.double()).abs().max().item() if one.numel() else 0.0 for one, other in pairs)


def deviations(lengths, heads, dtype, device="cpu"):
    """From attention in one process in float64, and that of torch's own attention in `dtype`, by case."""
    ranks, device = everyone(), torch.device(device)
    found = {}
    for length, count in itertools.product(lengths, heads):
        held = window(length, ranks, device)
        tensors = inputs(length, count, dtype, device)
        for name, sight in sights(length, device).items():
            expected = plain_attention(sight, [tensor.double() for tensor in tensors])
            usual = deviation(plain_attention(sight, tensors), expected)
            expected = [tensor[:, :, held.positions] for tensor in expected]
            for method in METHODS:
                mixer = context_mixer(method, ranks)
                seen = mixer.prepare(sight, held)
                shares = [tensor[:, :, held.positions] for tensor in tensors]
                got = with_gradients(lambda q, k, v, mixer=mixer, seen=seen: mixer.mix(q, k, v, seen), shares)
                assert {one.dtype for one in got} == {dtype}
                found[method, name, length, count] = (deviation(got, expected), usual)
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_attention_over_several_ranks_is_attention(world):
    for cases in run_distributed(deviations, world, LENGTHS, HEADS, torch.float64):
        assert len(cases) == len(METHODS) * 6 * len(LENGTHS) * len(HEADS)
        assert {case: error for case, (error, _) in cases.items() if not error < 1e-13} == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_several_ranks_loses_no_more_digits_than_attention(dtype):
    for cases in run_distributed(deviations, 3, (40, 13), (4,), dtype):
        assert {case: pair for case, pair in cases.items() if not pair[0] < 2 * pair[1]} == {}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_over_several_devices_is_attention(dtype):
    world = min(4, torch.cuda.device_count())
    for cases in run_distributed(deviations, world, (130, 13), (4, 3), dtype, "cuda", backend="nccl"):
        assert {case: pair for case, pair in cases.items() if not pair[0] < max(1e-12, 2 * pair[1])} == {}


def who_notices(length: int):
    """For each way to see, ``[batch, places changed, own queries]``: did the output change at all."""
    ranks = everyone()
    held = window(length, ranks, CPU)
    query, key, value, other = (tensor[:, :, held.positions] for tensor in inputs(length, 2, torch.float64))
    found = {}
    for (name, sight), method in itertools.product(sights(length).items(), METHODS):
        mixer = context_mixer(method, ranks)
        seen = mixer.prepare(sight, held)
        before = mixer.mix(query, key, value, seen)
        changed = []
        for place in range(length):
            here = (held.positions == place)[:, None]
            after = mixer.mix(query, torch.where(here, other, key), torch.where(here, -other, value), seen)
            changed.append((after != before).any(-1).any(1))
        found[method, name] = torch.stack(changed, dim=1)
    return held.positions, found


def test_a_position_changes_those_that_see_it_and_no_bit_of_others():
    length = 11
    by_rank = run_distributed(who_notices, 3, length)
    everywhere = torch.arange(length)
    for case in by_rank[0][1]:
        expected = sights(length)[case[1]].mask(everywhere, everywhere)
        expected = torch.ones(BATCH, 1, length, length, dtype=torch.bool) if expected is None else expected
        sees = expected.expand(BATCH, 1, length, length)[:, 0]
        for positions, found in by_rank:
            assert torch.equal(found[case], sees.mT[:, :, positions]), case


@pytest.mark.parametrize("parts", range(1, 6))
def test_ranks_hold_each_position_once_and_as_many_as_others(parts):
    for length in range(1, 45):
        held = [zigzag(length, parts, rank) for rank in range(parts)]
        assert torch.equal(torch.cat(held).sort().values, torch.arange(length))
        assert all(torch.equal(share, share.sort().values) for share in held)
        assert max(map(len, held)) - min(map(len, held)) <= 1


def pairs(sight: Sight, length: int, parts: int) -> list[int]:
    """How many pairs of a query and a key each rank of a ring computes."""
    counts = []
    for rank in range(parts):
        alone = RankGroup(None, rank, parts)
        held = window(length, alone, CPU)
        count = 0
        for tile in itertools.chain(*RingMixer(alone).prepare(sight, held).tiles):
            rows, columns = (len(range(length)[part]) for part in (tile.queries, tile.keys))
            count += rows * (rows + 1) // 2 if tile.seen().causal else rows * columns
        counts.append(count)
    return counts


@pytest.mark.parametrize("parts", [1, 2, 4, 7])
def test_ranks_of_a_ring_share_the_work_of_a_causal_model_evenly(parts):
    chunk = 5
    length = 2 * parts * chunk
    assert pairs(Sight(causal=True), length, parts) == [length * (length + 1) // 2 // parts] * parts
    documents = torch.zeros(1, length, dtype=torch.long)
    # Per rank a chunk of each other rank's two with both of its own, and three quarters of its own square.
    assert pairs(Sight(causal=True, documents=documents), length, parts) == [(2 * parts + 1) * chunk**2] * parts
    # A band as narrow as a chunk reaches one chunk back.
    assert max(pairs(Sight(causal=True, band=chunk), length, parts)) <= 4 * chunk**2
