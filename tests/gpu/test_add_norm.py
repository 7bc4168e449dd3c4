"""Kernels of dropout, sums and LayerNorm on CUDA at the sizes of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ptm_dist.kernels.add_norm import add
from ptm_dist.kernels.choice import Choice, Form, Operation
from tests.kernels.norm_cases import (
    a_drop,
    add_norm_inputs,
    assert_as_accurate,
    choice_of,
    embed_inputs,
    fused_add,
    fused_add_norm,
    fused_embed,
    plain_add,
    plain_add_norm,
    plain_embed,
    plain_factors,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(3, 7, 1), (5, 33, 257), (16, 512, 768), (8, 1024, 1024), (2, 512, 4096), (1, 300, 12288)]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_norm_are_as_accurate_as_torch(shape, dropping, dtype):
    drop = a_drop(*shape[:2], own_positions=shape[0] == 5, device="cuda") if dropping else None
    inputs = add_norm_inputs(*shape, device="cuda")
    for used in ((0,), (0, 1), (1,)):
        assert_as_accurate(fused_add_norm(drop, Form.TRITON), plain_add_norm(drop), inputs, dtype, used=used)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_alone_is_as_accurate_as_torch(shape, dtype):
    drop = a_drop(*shape[:2], device="cuda")
    inputs = add_norm_inputs(*shape, device="cuda")[:2]
    assert_as_accurate(fused_add(drop, Form.TRITON), plain_add(drop), inputs, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize(("normed", "segments"), [(False, False), (True, True)])
@pytest.mark.parametrize("shape", [(3, 7, 1), (5, 33, 257), (16, 512, 128), (16, 512, 1024)])
def test_embeddings_are_as_accurate_as_torch(shape, normed, segments, dropping, dtype):
    drop = a_drop(*shape[:2], device="cuda") if dropping else None
    inputs = embed_inputs(*shape, normed=normed, segments=segments, own_positions=shape[0] == 5, device="cuda")
    fused, plain = fused_embed(drop, Form.TRITON, segments=segments), plain_embed(drop, segments=segments)
    assert_as_accurate(fused, plain, inputs, dtype)


@pytest.mark.parametrize("width", [1, 257, 1024, 12288])
def test_kernels_draw_the_same_bits_as_a_cpu(width):
    ones = torch.ones(5, 33, width, device="cuda")
    drop = a_drop(5, 33)
    out = add(ones, torch.zeros_like(ones), a_drop(5, 33, device="cuda"), choice_of(Form.TRITON))
    assert torch.equal((out != 0).cpu(), drop.kept(width))


def test_gradients_are_the_same_bits_every_time():
    function, inputs = fused_add_norm(a_drop(8, 512, device="cuda"), Form.TRITON), add_norm_inputs(8, 512, 1024, "cuda")
    first, second = (run(function, inputs, torch.bfloat16).all() for _ in range(2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def test_a_recorded_graph_draws_from_the_key_that_is_there_when_it_is_replayed():
    drop, ones = a_drop(4, 64, device="cuda"), torch.ones(4, 64, 256, device="cuda")
    add(ones, ones, drop, choice_of(Form.TRITON))  # compiles outside of the recording
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = add(ones, torch.zeros_like(ones), drop, choice_of(Form.TRITON))
    other = replace(drop, key=torch.tensor([1, 2], device="cuda"))
    drop.key.copy_(other.key)
    graph.replay()
    torch.testing.assert_close(out, plain_factors(other, ones))


def test_a_block_around_kernels_can_be_compiled_as_a_whole():
    function, inputs = fused_add_norm(a_drop(4, 64, device="cuda"), Form.TRITON), add_norm_inputs(4, 64, 256, "cuda")
    compiled = torch.compile(function, fullgraph=True)
    found, expected = (run(each, inputs, torch.float32).all() for each in (compiled, function))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)  # The compiler adds up shares of programs in an order of its own.


def test_dropout_on_cuda_takes_the_kernel_unasked():
    like = torch.ones(1, 1, 64, device="cuda", dtype=torch.float16)
    assert Choice().form(Operation.EMBEDDING, like, drops=True) is Form.TRITON
