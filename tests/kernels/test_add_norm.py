"""Dropout, residual addition and LayerNorm by torch's operations and by its compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from ptm_dist.kernels.choice import Form
from tests.kernels.norm_cases import (
    a_drop,
    add_norm_inputs,
    assert_as_accurate,
    fused_add,
    fused_add_norm,
    plain_add,
    plain_add_norm,
    run,
)

SHAPES = [(1, 1, 1), (1, 3, 47), (7, 1, 96), (2, 3, 257)]


def assert_same(found, expected, tolerance=1e-12):
    """Only rounding differs; a row of one element divides by the root of 1e-5."""
    for ours, theirs in zip(found.all(), expected.all(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("used", [(0,), (0, 1)], ids=["post", "pre"])
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_those_of_an_explicit_mask(shape, dropping, used):
    drop = a_drop(*shape[:2], own_positions=shape[0] > 1) if dropping else None
    inputs = add_norm_inputs(*shape)
    expected = run(plain_add_norm(drop), inputs, torch.float64, used=used)
    assert_same(run(fused_add_norm(drop, Form.REFERENCE), inputs, torch.float64, used=used), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropping", [False, True])
def test_low_precision_is_as_accurate_as_an_explicit_mask(dropping, dtype):
    drop = a_drop(2, 9) if dropping else None
    inputs = add_norm_inputs(2, 9, 257)
    assert_as_accurate(fused_add_norm(drop, Form.REFERENCE), plain_add_norm(drop), inputs, dtype)
    assert_as_accurate(fused_add(drop, Form.REFERENCE), plain_add(drop), inputs[:2], dtype)


@pytest.mark.parametrize("form", [Form.REFERENCE, Form.COMPILE])
def test_recomputation_draws_the_same_mask(form):
    drop, inputs = a_drop(2, 3), add_norm_inputs(2, 3, 40)
    function = fused_add_norm(drop, form)
    once = run(function, inputs, torch.float64)
    assert_same(once, run(plain_add_norm(drop), inputs, torch.float64))
    again = run(lambda *leaves: checkpoint(function, *leaves, use_reentrant=False), inputs, torch.float64)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.all(), once.all(), strict=True))


def test_new_keys_and_many_shapes_are_compiled_twice_at_most():
    counter = CompileCounter()

    @torch.compile(backend=counter)
    def function(drop, *inputs):
        return fused_add_norm(drop, Form.REFERENCE)(*inputs)

    for batch, seq, salt in ((2, 3, 0), (2, 3, 1), (4, 5, 2), (3, 9, 3), (8, 2, 4)):
        drop, inputs = a_drop(batch, seq), add_norm_inputs(batch, seq, 40)
        drop = replace(drop, key=drop.key + salt)
        found, expected = function(drop, *inputs), plain_add_norm(drop)(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # Only rounding differs.
    assert counter.frame_count <= 2


def test_a_block_around_it_can_be_compiled_as_a_whole():
    drop, inputs = a_drop(2, 3), add_norm_inputs(2, 3, 40)
    compiled = torch.compile(fused_add_norm(drop, Form.REFERENCE), backend="aot_eager", fullgraph=True)
    assert_same(run(compiled, inputs, torch.float64), run(plain_add_norm(drop), inputs, torch.float64))


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="add_norm has no form apex"):
        run(fused_add_norm(None, Form.APEX), add_norm_inputs(1, 1, 8), torch.float64)
    with pytest.raises(ValueError, match="add_norm has no form liger"):
        run(fused_add(a_drop(1, 1), Form.LIGER), add_norm_inputs(1, 1, 8)[:2], torch.float64)
