"""The kernels of embeddings in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Form
from tests.kernels.norm_cases import (
    a_drop,
    assert_as_accurate,
    embed_inputs,
    fused_embed,
    plain_embed,
    run,
)

SHAPES = [(1, 1, 1), (1, 3, 47), (2, 9, 20), (3, 2, 257)]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_those_of_plain_float64(shape, segments, normed, dropping):
    drop = a_drop(*shape[:2]) if dropping else None
    inputs = embed_inputs(*shape, normed=normed, segments=segments, own_positions=segments)
    expected = run(plain_embed(drop, segments=segments), inputs, torch.float64)
    found = run(fused_embed(drop, Form.TRITON, segments=segments), inputs, torch.float64)
    for ours, theirs in zip(found.all(), expected.all(), strict=True):
        # Only the order of sums differs; a row of one element divides by the root of 1e-5.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_low_precision_is_as_accurate_as_torch(normed, dtype):
    drop = a_drop(2, 9, own_positions=True)
    inputs = embed_inputs(2, 9, 47, normed=normed, segments=True)
    plain, fused = plain_embed(drop, segments=True), fused_embed(drop, Form.TRITON, segments=True)
    assert_as_accurate(fused, plain, inputs, dtype)


def test_positions_alone_may_want_a_gradient():
    drop = a_drop(3, 4)
    token, position, *affine = embed_inputs(3, 4, 40, normed=True, segments=False)
    gradients = []
    for function in (fused_embed(drop, Form.TRITON, segments=False), plain_embed(drop, segments=False)):
        leaf = position.clone().requires_grad_()
        function(token, leaf, *affine)[0].square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
