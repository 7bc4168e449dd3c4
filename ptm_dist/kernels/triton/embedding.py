"""Sum of embeddings, its LayerNorm and dropout in one pass over memory; see ptm_dist/kernels/embedding.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.triton.layer_norm import (
    Statistics,
    affine_sums,
    empty_statistics,
    normalise,
    normalise_backward,
    row_options,
)
from ptm_dist.kernels.triton.philox import drop_arguments, keep_factors


@triton.jit
def _forward(
    token: tl.tensor,
    position: tl.tensor,
    segment: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    key: tl.tensor,
    samples: tl.tensor,
    places: tl.tensor,
    seq: tl.tensor,
    place_stride: tl.tensor,
    position_stride: tl.tensor,
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
    place = (row // seq * position_stride + row % seq) * WIDTH + feature
    value = tl.load(token + here, mask=inside, other=0.0).to(REAL)
    value += tl.load(position + place, mask=inside, other=0.0).to(REAL)
    if segment is not None:
        value += tl.load(segment + here, mask=inside, other=0.0).to(REAL)
    if weight is not None:
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + here, rounded, mask=inside)
        # The backward pass reads the rounded sum, so that is what is normed.
        value, mean, inverse = normalise(rounded.to(REAL), inside, WIDTH, EPS)
        value *= tl.load(weight + feature, mask=inside, other=0.0).to(REAL)
        value += tl.load(bias + feature, mask=inside, other=0.0).to(REAL)
        tl.store(means + row, mean)
        tl.store(inverses + row, inverse)
    if key is not None:
        value *= keep_factors(key, samples, places, row, seq, place_stride, THRESHOLD, BLOCK, REAL)
    tl.store(out + here, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    of_out: tl.tensor,
    total: tl.tensor,
    weight: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    of_total: tl.tensor,
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
    weight_sum = tl.zeros([BLOCK], REAL)
    bias_sum = tl.zeros([BLOCK], REAL)
    first = program * rows_each
    for number in range(first, tl.minimum(first + rows_each, rows)):
        row = tl.cast(number, tl.int64)
        here = row * WIDTH + feature
        gradient = tl.load(of_out + here, mask=inside, other=0.0).to(REAL)
        if key is not None:
            gradient *= keep_factors(key, samples, places, row, seq, place_stride, THRESHOLD, BLOCK, REAL)
        inverse = tl.load(inverses + row)
        normal = (tl.load(total + here, mask=inside, other=0.0).to(REAL) - tl.load(means + row)) * inverse
        weight_sum += gradient * normal
        bias_sum += gradient
        value = normalise_backward(gradient, scale, normal, inverse, WIDTH)
        tl.store(of_total + here, value.to(of_total.dtype.element_ty), mask=inside)
    tl.store(of_weight + program * WIDTH + feature, weight_sum, mask=inside)
    tl.store(of_bias + program * WIDTH + feature, bias_sum, mask=inside)


def embed(
    token: Tensor,
    position: Tensor,
    segment: Tensor | None,
    norm: tuple[Tensor, Tensor, float] | None,
    drop: Drop | None,
) -> tuple[Tensor, tuple[Tensor, Statistics] | None]:
    """``dropout(LayerNorm(token + position + segment))``; with a norm also the sum and its statistics."""
    token, position = token.contiguous(), position.contiguous()
    segment = None if segment is None else segment.contiguous()
    _, seq, width = token.shape
    out = torch.empty_like(token)
    weight, bias, eps = norm or (None, None, 0.0)
    kept = None if norm is None else (torch.empty_like(token), empty_statistics(token))
    total, statistics = kept or (None, (None, None))
    options = drop_arguments(drop, seq) | row_options(width, token.dtype)
    _forward[(token.numel() // width,)](
        token, position, segment, weight, bias, out, total, *statistics, **options,
        position_stride=seq if position.dim() == 3 else 0, EPS=eps,
    )  # fmt: skip
    return out, kept


def embed_backward(
    of_out: Tensor, total: Tensor, weight: Tensor, statistics: Statistics, drop: Drop | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum of embeddings, ``[batch, seq, width]``, of weight and of bias, ``[width]``.

    Args:
        of_out: gradient of the result.
        total: the sum, contiguous.
        weight: of LayerNorm.
        statistics: of the sum.
        drop: the one of the forward pass.
    """
    of_out = of_out.contiguous()
    _, seq, width = total.shape
    rows = total.numel() // width
    of_total = torch.empty_like(total)
    sums, rows_each = affine_sums(rows, total)
    options = drop_arguments(drop, seq) | row_options(width, total.dtype)
    _backward[(sums.shape[1],)](
        of_out, total, weight, *statistics, of_total, *sums, **options, rows=rows, rows_each=rows_each
    )
    of_weight, of_bias = sums.sum(1).to(weight.dtype)
    return of_total, of_weight, of_bias
