"""Dropout, residual addition and LayerNorm in one pass over memory; see ptm_dist/kernels/add_norm.py.

Backwards as well: masks are drawn again, and each program sums its own share of the gradients of weight and bias, so
that the result does not depend on which program is first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.triton.layer_norm import (
    MOST_SUMMED,
    Statistics,
    affine_sums,
    empty_statistics,
    normalise,
    normalise_backward,
    row_options,
    sum_columns,
)
from ptm_dist.kernels.triton.philox import drop_arguments, keep_factors


@triton.jit
def _drop_add(
    branch: tl.tensor,
    residual: tl.tensor,
    total: tl.tensor,
    key: tl.tensor,
    samples: tl.tensor,
    places: tl.tensor,
    seq: tl.tensor,
    place_stride: tl.tensor,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < WIDTH
    here = row * WIDTH + feature
    value = tl.load(branch + here, mask=inside, other=0.0).to(REAL)
    value *= keep_factors(key, samples, places, row, seq, place_stride, THRESHOLD, BLOCK, REAL)
    if residual is not None:
        value += tl.load(residual + here, mask=inside, other=0.0).to(REAL)
    tl.store(total + here, value.to(total.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    branch: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    key: tl.tensor,
    samples: tl.tensor,
    places: tl.tensor,
    seq: tl.tensor,
    place_stride: tl.tensor,
    THRESHOLD: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < WIDTH
    here = row * WIDTH + feature
    value = tl.load(branch + here, mask=inside, other=0.0).to(REAL)
    if key is not None:
        value *= keep_factors(key, samples, places, row, seq, place_stride, THRESHOLD, BLOCK, REAL)
    value += tl.load(residual + here, mask=inside, other=0.0).to(REAL)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + here, rounded, mask=inside)
    # The backward pass reads the rounded sum, so that is what is normed.
    normal, mean, inverse = normalise(rounded.to(REAL), inside, WIDTH, EPS)
    scale = tl.load(weight + feature, mask=inside, other=0.0).to(REAL)
    shift = tl.load(bias + feature, mask=inside, other=0.0).to(REAL)
    tl.store(normed + here, (normal * scale + shift).to(normed.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(inverses + row, inverse)


@triton.jit
def _backward(
    of_normed: tl.tensor,
    of_total: tl.tensor,
    total: tl.tensor,
    weight: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    of_residual: tl.tensor,
    of_branch: tl.tensor,
    of_weight: tl.tensor,
    of_bias: tl.tensor,
    key: tl.tensor,
    samples: tl.tensor,
    places: tl.tensor,
    seq: tl.tensor,
    place_stride: tl.tensor,
    rows: tl.tensor,
    rows_each: tl.tensor,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < WIDTH
    scale = tl.load(weight + feature, mask=inside, other=0.0).to(REAL)
    if of_weight is not None:
        weight_sum = tl.zeros([BLOCK], REAL)
        bias_sum = tl.zeros([BLOCK], REAL)
    first = program * rows_each
    for number in range(first, tl.minimum(first + rows_each, rows)):
        row = tl.cast(number, tl.int64)
        here = row * WIDTH + feature
        gradient = tl.load(of_normed + here, mask=inside, other=0.0).to(REAL)
        inverse = tl.load(inverses + row)
        normal = (tl.load(total + here, mask=inside, other=0.0).to(REAL) - tl.load(means + row)) * inverse
        if of_weight is not None:
            weight_sum += gradient * normal
            bias_sum += gradient
        value = normalise_backward(gradient, scale, normal, inverse, WIDTH)
        if of_total is not None:
            value += tl.load(of_total + here, mask=inside, other=0.0).to(REAL)
        tl.store(of_residual + here, value.to(of_residual.dtype.element_ty), mask=inside)
        if key is not None:
            value *= keep_factors(key, samples, places, row, seq, place_stride, THRESHOLD, BLOCK, REAL)
            tl.store(of_branch + here, value.to(of_branch.dtype.element_ty), mask=inside)
    if of_weight is not None:
        tl.store(of_weight + program * WIDTH + feature, weight_sum, mask=inside)
        tl.store(of_bias + program * WIDTH + feature, bias_sum, mask=inside)


def drop_add(branch: Tensor, residual: Tensor | None, drop: Drop) -> Tensor:
    """``residual + dropout(branch)``, ``[batch, seq, width]``; None adds nothing."""
    branch, residual = branch.contiguous(), None if residual is None else residual.contiguous()
    _, seq, width = branch.shape
    total = torch.empty_like(
        branch, dtype=torch.promote_types(branch.dtype, (branch if residual is None else residual).dtype)
    )
    options = drop_arguments(drop, seq) | row_options(width, total.dtype)
    _drop_add[(total.numel() // width,)](branch, residual, total, **options)
    return total


def add_norm(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, drop: Drop | None
) -> tuple[Tensor, Tensor, Statistics]:
    """LayerNorm of ``residual + dropout(branch)``, the sum itself, ``[batch, seq, width]``, and what it had."""
    branch, residual = branch.contiguous(), residual.contiguous()
    _, seq, width = branch.shape
    total = torch.empty_like(branch, dtype=torch.promote_types(branch.dtype, residual.dtype))
    normed = torch.empty_like(total)
    statistics = empty_statistics(total)
    options = drop_arguments(drop, seq) | row_options(width, total.dtype)
    _forward[(total.numel() // width,)](branch, residual, weight, bias, normed, total, *statistics, **options, EPS=eps)
    return normed, total, statistics


def add_norm_backward(
    of_normed: Tensor,
    of_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    statistics: Statistics,
    drop: Drop | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of branch and residual, ``[batch, seq, width]``, and of weight and bias, ``[width]``.

    Args:
        of_normed: gradient of the normed sum.
        of_total: gradient of the sum, if it was used for more than the norm.
        total: the sum, contiguous.
        weight: of LayerNorm.
        statistics: of the sum.
        drop: the one of the forward pass.
    """
    of_normed, of_total = of_normed.contiguous(), None if of_total is None else of_total.contiguous()
    _, seq, width = total.shape
    rows = total.numel() // width
    of_residual = torch.empty_like(total)
    of_branch = of_residual if drop is None else torch.empty_like(total)
    sums, rows_each = affine_sums(rows, total)
    alone = width > MOST_SUMMED
    options = drop_arguments(drop, seq) | row_options(width, total.dtype)
    _backward[(sums.shape[1],)](
        of_normed, of_total, total, weight, *statistics, of_residual, of_branch,
        *((None, None) if alone else sums), **options, rows=rows, rows_each=rows_each,
    )  # fmt: skip
    if alone:
        sum_columns(of_normed, total, statistics, sums, rows_each)
    of_weight, of_bias = sums.sum(1).to(weight.dtype)
    return of_branch, of_residual, of_weight, of_bias
