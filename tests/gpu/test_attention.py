"""The kernels of attention with dropout on a GPU."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Form
from tests.kernels.attention_cases import (
    KINDS,
    a_drop,
    assert_as_accurate,
    numbers,
    ours,
    plain,
    plain_kept,
    results,
    worst,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("in_octets", [True, False])
@pytest.mark.parametrize("head_size", [64, 80, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_are_as_accurate_as_torch(dtype, kind, head_size, in_octets):
    length = 515
    drop = a_drop(3, length, length, in_octets=in_octets, device="cuda")
    given = numbers(3, 4, length, length, head_size, "cuda")
    assert_as_accurate(ours(kind, drop, Form.TRITON), plain(kind, drop), given, dtype)


@pytest.mark.parametrize("form", [Form.REFERENCE, Form.TRITON])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_differs_by_the_order_of_sums_alone(kind, form):
    drop, given = a_drop(2, 130, 130, device="cuda"), numbers(2, 3, 130, 130, 64, "cuda")
    assert worst(results(ours(kind, drop, form), given), results(plain(kind, drop), given)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_as_accurate_as_torch(kind, dtype):
    drop, given = a_drop(2, 515, 515, device="cuda"), numbers(2, 3, 515, 515, 64, "cuda")
    assert_as_accurate(ours(kind, drop, Form.REFERENCE), plain(kind, drop), given, dtype)


@pytest.mark.parametrize("in_octets", [True, False])
def test_kernels_draw_the_bits_of_a_cpu(in_octets):
    drop = a_drop(2, 300, 64, in_octets=in_octets, device="cuda")
    query, key, _, _ = numbers(2, 3, 300, 64, 64, "cuda")
    alone = torch.eye(64, device="cuda").expand(2, 3, 64, 64)  # The output is the probabilities.
    output = ours("full", drop, Form.TRITON)(query.bfloat16(), key.bfloat16(), alone.bfloat16())
    on_cpu = a_drop(2, 300, 64, in_octets=in_octets)
    assert torch.equal((output != 0).cpu(), plain_kept(on_cpu, 3))


@pytest.mark.parametrize("head_size", [64, 128])
def test_kernels_give_the_same_bits_every_time(head_size):
    drop, given = a_drop(4, 1024, 1024, device="cuda"), numbers(4, 8, 1024, 1024, head_size, "cuda")
    first, again = (results(ours("causal", drop, Form.TRITON), given, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_memory_grows_with_the_length_alone():
    peaks = []
    for length in (1024, 4096):
        drop, given = a_drop(1, length, length, device="cuda"), numbers(1, 16, length, length, 64, "cuda")
        given = [tensor.bfloat16() for tensor in given]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(ours("causal", drop, Form.TRITON), given, torch.bfloat16)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 4.5 * peaks[0]


def test_compiled_code_has_the_kernel_in_it():
    drop, given = a_drop(2, 256, 256, device="cuda"), numbers(2, 4, 256, 256, 64, "cuda")
    function = ours("causal", drop, Form.TRITON)
    found = results(torch.compile(function, fullgraph=True), given, torch.bfloat16)
    expected = results(function, given, torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
