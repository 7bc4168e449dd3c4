"""The kernels of dropout, residual addition and LayerNorm, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ptm_dist.kernels.add_norm import add
from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.philox import uniform16
from ptm_dist.kernels.triton.layer_norm import MOST_SUMMED
from tests.kernels.norm_cases import (
    a_drop,
    add_norm_inputs,
    assert_as_accurate,
    choice_of,
    fused_add,
    fused_add_norm,
    plain_add,
    plain_add_norm,
    plain_factors,
    run,
)

SHAPES = [(1, 1, 1), (1, 3, 47), (7, 1, 96), (1, 17, 20), (2, 2, 257)]
"""Batch, seq, width; 17 rows are more than there are programs for them, and the last one has fewer than the others."""
USED = {"post": (0,), "pre": (0, 1), "the sum alone": (1,)}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_those_of_plain_float64(shape, dropping, used):
    drop = a_drop(*shape[:2], own_positions=shape[0] > 1) if dropping else None
    inputs = add_norm_inputs(*shape)
    expected = run(plain_add_norm(drop), inputs, torch.float64, used=USED[used])
    found = run(fused_add_norm(drop, Form.TRITON), inputs, torch.float64, used=USED[used])
    for ours, theirs in zip(found.outputs + found.gradients, expected.outputs + expected.gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            # Only the order of sums differs; a row of one element divides by the root of 1e-5.
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_rows_too_wide_for_the_registers_of_a_program_are_summed_by_another_kernel():
    drop, inputs = a_drop(1, 3), add_norm_inputs(1, 3, MOST_SUMMED + 40)
    expected = run(plain_add_norm(drop), inputs, torch.float64)
    found = run(fused_add_norm(drop, Form.TRITON), inputs, torch.float64)
    for ours, theirs in zip(found.all(), expected.all(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # Only the order of sums differs.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 47), (1, 17, 20), (2, 2, 257)])
def test_low_precision_is_as_accurate_as_torch(shape, dropping, dtype):
    drop = a_drop(*shape[:2]) if dropping else None
    assert_as_accurate(fused_add_norm(drop, Form.TRITON), plain_add_norm(drop), add_norm_inputs(*shape), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_without_a_norm_is_as_accurate_as_torch(dtype):
    drop = a_drop(3, 5)
    inputs = add_norm_inputs(3, 5, 47)[:2]
    assert_as_accurate(fused_add(drop, Form.TRITON), plain_add(drop), inputs, dtype)


@pytest.mark.parametrize("width", [1, 47, 96, 257])
@pytest.mark.parametrize("own_positions", [False, True])
def test_kernels_draw_the_same_bits(width, own_positions):
    drop = a_drop(2, 3, own_positions=own_positions)
    ones = torch.ones(2, 3, width, dtype=torch.float64)
    out = add(ones, torch.zeros_like(ones), drop, choice_of(Form.TRITON))
    assert torch.equal(out, plain_factors(drop, ones))


def test_kernels_keep_a_number_that_equals_the_threshold():
    drop = a_drop(1, 3)
    counter = (drop.positions[None], drop.samples[:, None], torch.tensor([[0]]))
    drawn = uniform16(counter, 8, (drop.key[0], drop.key[1]))
    ones = torch.ones(1, 3, 8, dtype=torch.float64)
    for least in drawn.flatten().tolist():
        equal = replace(drop, probability=least / 65536)
        out = add(ones, torch.zeros_like(ones), equal, choice_of(Form.TRITON))
        assert torch.equal(out != 0, drawn >= least)


def test_a_part_of_a_batch_is_dropped_as_in_the_whole():
    drop, ones = a_drop(3, 5), torch.ones(3, 5, 40)
    whole = add(ones, ones, drop, choice_of(Form.TRITON))
    part = Drop(drop.probability, drop.key, drop.samples[1:], drop.positions[2:4])
    assert torch.equal(add(ones[1:, 2:4], ones[1:, 2:4], part, choice_of(Form.TRITON)), whole[1:, 2:4])


def test_inputs_and_gradients_may_lie_anywhere_in_memory():
    drop = a_drop(2, 3)
    function, inputs = fused_add_norm(drop, Form.TRITON), add_norm_inputs(2, 3, 40)
    scattered = [value.mT.contiguous().mT if value.dim() == 3 else value for value in inputs]
    assert not scattered[0].is_contiguous()
    found, expected = (run(function, values, torch.float64).all() for values in (scattered, inputs))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    leaves = [value.clone().requires_grad_() for value in inputs]
    function(*leaves)[0].sum().backward()  # a gradient with strides of 0
    torch.testing.assert_close(leaves[3].grad, torch.full((40,), 6.0, dtype=torch.float64))


def test_a_wider_residual_stream_stays_as_wide():
    drop, (branch, residual, weight, bias) = a_drop(2, 3), add_norm_inputs(2, 3, 40)
    inputs = [branch.bfloat16(), residual.float(), weight.float(), bias.float()]
    results = []
    for form in (Form.REFERENCE, Form.TRITON):
        leaves = [value.clone().requires_grad_() for value in inputs]
        normed, total = fused_add_norm(drop, form)(*leaves)
        (normed.square().sum() + total.sum()).backward()
        results.append([normed, total, *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wanted", range(4))
def test_a_single_input_may_want_a_gradient(wanted):
    drop, inputs = a_drop(2, 3), add_norm_inputs(2, 3, 40)
    expected = run(fused_add_norm(drop, Form.TRITON), inputs, torch.float64)
    leaves = [value.clone().requires_grad_(index == wanted) for index, value in enumerate(inputs)]

    def function(*_):
        return fused_add_norm(drop, Form.TRITON)(*leaves)

    run(function, inputs, torch.float64)
    for index, leaf in enumerate(leaves):
        assert leaf.grad is None if index != wanted else torch.equal(leaf.grad, expected.gradients[index])


def test_recomputation_gives_the_same_gradients():
    function, inputs = fused_add_norm(a_drop(2, 3), Form.TRITON), add_norm_inputs(2, 3, 40)
    plain = run(function, inputs, torch.float32)
    again = run(lambda *leaves: checkpoint(function, *leaves, use_reentrant=False), inputs, torch.float32)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.all(), plain.all(), strict=True))
