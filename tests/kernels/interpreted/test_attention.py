"""The kernels of attention with dropout, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ptm_dist.kernels.attention_blocks import attend_in_blocks, attend_in_blocks_backward
from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.seen import Seen
from ptm_dist.kernels.triton.attention import attend
from ptm_dist.kernels.triton.attention_backward import attend_backward
from tests.kernels.attention_cases import (
    KINDS,
    a_drop,
    assert_as_accurate,
    mask_of,
    numbers,
    ours,
    plain,
    plain_kept,
    results,
    worst,
)

LENGTH = 39
"""Three blocks of queries and two of keys, the last ones not full."""


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_give_softmax_times_the_mask_and_its_gradients(kind):
    drop, given = a_drop(2, LENGTH, LENGTH), numbers(2, 2, LENGTH, LENGTH, 16)
    # Only the order of sums and the exponential differ.
    assert worst(results(ours(kind, drop, Form.TRITON), given), results(plain(kind, drop), given)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [32, 20])
def test_kernels_are_as_accurate_as_torch(head_size, dtype):
    drop, given = a_drop(1, LENGTH, LENGTH), numbers(1, 2, LENGTH, LENGTH, head_size)
    assert_as_accurate(ours("causal", drop, Form.TRITON), plain("causal", drop), given, dtype)


@pytest.mark.parametrize("in_octets", [True, False])
def test_kernels_draw_the_same_bits(in_octets):
    queries, keys = 17, 69
    drop = a_drop(2, queries, keys, in_octets=in_octets)
    if not in_octets:
        drop = replace(drop, keys=drop.keys * 3 % 64 + 2**32 - 100, queries=drop.queries.flip(0))
    given = numbers(2, 1, queries, keys, 69)[:2]
    alone = torch.eye(keys, dtype=torch.float64).expand(2, 1, keys, keys)  # The output is the probabilities.
    output, _ = attend(given[0][..., :keys], given[1], alone, Seen(drop=drop))
    assert torch.equal(output != 0, plain_kept(drop, 1))


def test_parts_of_the_keys_get_what_torch_gives_them():
    """As in ring attention: keys in no octets, other numbers of queries and keys, gradients from the whole's output."""
    queries, keys = 21, 35
    drop = a_drop(1, queries, keys, in_octets=False)
    drop = replace(drop, keys=torch.cat([torch.arange(3, 20), torch.arange(70, 88)]))
    *vectors, grad = numbers(1, 2, queries, keys, 16)
    seen = Seen(mask_of("documents", 1, queries, keys), drop=drop)
    output, lse = attend_in_blocks(*vectors, seen)
    found = attend(*vectors, seen)
    assert torch.equal(found[1].isinf(), lse.isinf())
    assert worst([found[0], found[1].nan_to_num(neginf=0)], [output, lse.nan_to_num(neginf=0)]) < 1e-14
    whole_output, whole_lse = output * 0.7, (lse + 0.5).masked_fill(lse.isinf(), torch.inf)
    given = (grad, *vectors, whole_output, whole_lse, seen)
    assert worst(list(attend_backward(*given)), list(attend_in_blocks_backward(*given))) < 1e-14


def test_vectors_may_lie_anywhere_in_memory():
    drop, given = a_drop(1, LENGTH, LENGTH), numbers(1, 2, LENGTH, LENGTH, 16)
    scattered = [tensor.mT.contiguous().mT for tensor in given]
    function = ours("causal", drop, Form.TRITON)
    found = results(function, scattered)
    assert all(torch.equal(one, other) for one, other in zip(found, results(function, given), strict=True))
