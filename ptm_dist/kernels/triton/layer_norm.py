"""LayerNorm of one row, forwards and backwards, for the kernels that compute something else in the same pass.

A program holds whole rows in registers. Statistics are float32, or float64 where the data are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.triton.wide import wide_type
from ptm_dist.kernels.wide import wide_dtype

Statistics = tuple[Tensor, Tensor]
"""Mean of each row, and the inverse of its deviation, float32 or float64."""

MOST_SUMMED = 8192
"""Features of the widest row beside which a program has registers for the gradients of weight and bias."""


@triton.jit
def normalise(x: tl.tensor, inside: tl.tensor, WIDTH: tl.constexpr, EPS: tl.constexpr) -> tl.tensor:
    """Row with mean 0 and variance 1, its former mean, and the inverse of its former deviation.

    Args:
        x: the row, ``[BLOCK]``, 0 from WIDTH on.
        inside: which elements exist.
        WIDTH: how many.
        EPS: added to the variance.
    """
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + EPS)
    return centred * inverse, mean, inverse


@triton.jit
def normalise_backward(
    gradient: tl.tensor, weight: tl.tensor, normal: tl.tensor, inverse: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """Gradient of the row before LayerNorm.

    Args:
        gradient: of what LayerNorm gives, ``[BLOCK]``, 0 from WIDTH on.
        weight: of LayerNorm, ``[BLOCK]``, 0 from WIDTH on.
        normal: the row with mean 0 and variance 1.
        inverse: of the deviation that it had.
        WIDTH: elements of a row.
    """
    weighted = gradient * weight
    along = tl.sum(weighted * normal, 0) / WIDTH
    mean = tl.sum(weighted, 0) / WIDTH
    return (weighted - normal * along - mean) * inverse


@triton.jit
def _sum_columns(
    gradients: tl.tensor,
    total: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    of_weight: tl.tensor,
    of_bias: tl.tensor,
    rows: tl.tensor,
    rows_each: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < WIDTH
    weight_sum = tl.zeros([BLOCK], REAL)
    bias_sum = tl.zeros([BLOCK], REAL)
    first = program * rows_each
    for number in range(first, tl.minimum(first + rows_each, rows)):
        row = tl.cast(number, tl.int64)
        gradient = tl.load(gradients + row * WIDTH + feature, mask=inside, other=0.0).to(REAL)
        value = tl.load(total + row * WIDTH + feature, mask=inside, other=0.0).to(REAL)
        weight_sum += gradient * ((value - tl.load(means + row)) * tl.load(inverses + row))
        bias_sum += gradient
    tl.store(of_weight + program * WIDTH + feature, weight_sum, mask=inside)
    tl.store(of_bias + program * WIDTH + feature, bias_sum, mask=inside)


def sum_columns(gradients: Tensor, total: Tensor, statistics: Statistics, sums: Tensor, rows_each: int) -> None:
    """What programs of a backward pass sum up for weight and bias, where their rows leave no registers for it.

    Args:
        gradients: of what LayerNorm gave, ``[..., width]``, contiguous.
        total: what it norms, the same shape.
        statistics: of `total`.
        sums: the result, of :func:`affine_sums`.
        rows_each: as it says.
    """
    _, programs, width = sums.shape
    rows = total.numel() // width
    options = row_options(width, total.dtype) | {"BLOCK": 1024, "num_warps": 4}
    _sum_columns[(programs, -(-width // 1024))](
        gradients, total, *statistics, *sums, rows=rows, rows_each=rows_each, **options
    )


def row_options(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Constants of a kernel whose programs hold a row in registers."""
    block = max(1 << (width - 1).bit_length(), 64)
    # Eight elements for each thread: 16 bytes of bfloat16, the widest load there is.
    warps = min(max(block // 256, 1), 32)
    return {"WIDTH": width, "BLOCK": block, "REAL": wide_type(dtype), "num_warps": warps}


def empty_statistics(rows: Tensor) -> Statistics:
    """Room for those of the rows of ``[..., width]``."""
    shape = rows.shape[:-1]
    return rows.new_empty(shape, dtype=wide_dtype(rows.dtype)), rows.new_empty(shape, dtype=wide_dtype(rows.dtype))


def affine_sums(rows: int, like: Tensor) -> tuple[Tensor, int]:
    """Room for what each program of a backward pass sums up for weight and bias, and how many rows it goes through.

    Args:
        rows: of all programs.
        like: ``[..., width]``, on the same device.

    Returns: ``[2, programs, width]``, float32, or float64 where `like` is, uninitialised; the rows of a program.
    """
    width = like.shape[-1]
    # Enough programs to keep every processor's loads in flight; a row of 8192 fills one by itself.
    programs = _processors(like.device) * min(max(8192 // width, 1), 8)
    each = max(-(-rows // programs), 1)
    return like.new_empty((2, -(-rows // each), width), dtype=wide_dtype(like.dtype)), each


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
