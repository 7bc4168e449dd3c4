"""Bias and GELU in one pass over memory forwards, and one backwards, which sums the bias' gradient on the way.

Programs that share columns take rows by turns, and each leaves a sum of its own: they are added in a fixed order, so
that the gradient has the same bits each time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.triton.wide import wide_type
from ptm_dist.kernels.wide import wide_dtype

_ROWS, _COLUMNS = 4, 512
"""Of a tile: 16 elements for each of 128 threads, two vectors of 128 bits in bfloat16."""
_TURNS = 256
"""Programs that share the rows of a column backwards; with 3072 columns, 1536 programs."""


def gelu_forward(hidden: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """``gelu(hidden + bias)``.

    Args:
        hidden: ``[..., width]``, contiguous, not empty.
        bias: ``[width]``, contiguous.
        approximate: `tanh` or `none`.

    Returns: the shape and type of `hidden`.
    """
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    out = torch.empty_like(hidden)
    grid = (-(-rows // _ROWS), -(-width // _COLUMNS))
    _forward[grid](
        hidden, bias, out, rows, width,
        TANH=approximate == "tanh", KIND=wide_type(hidden.dtype), ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return out


def gelu_backward(gradient: Tensor, hidden: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`gelu_forward`.

    Args:
        gradient: of its result, contiguous.
        hidden: its argument.
        bias: its argument.
        approximate: its argument.

    Returns: gradients of `hidden` and `bias`, of their shapes and types.
    """
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    tiles = -(-rows // _ROWS)
    turns = min(tiles, _TURNS)
    of_hidden = torch.empty_like(hidden)
    sums = torch.empty(turns, width, dtype=wide_dtype(hidden.dtype), device=hidden.device)
    _backward[(turns, -(-width // _COLUMNS))](
        gradient, hidden, bias, of_hidden, sums, rows, width, tiles,
        TANH=approximate == "tanh", KIND=wide_type(hidden.dtype), ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return of_hidden, sums.sum(0).to(bias.dtype)


@triton.jit
def _parts(x: tl.tensor, TANH: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """``s`` with ``gelu(x) = x s``, and the slope of s."""
    if TANH:
        # tanh(u) = 2 sigmoid(2 u) - 1
        s = tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
        slope = s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        s = 0.5 * (1.0 + tl.math.erf(0.7071067811865476 * x))
        slope = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return s, slope


@triton.jit
def _forward(
    hidden: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    TANH: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    places = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(hidden + places, mask=inside).to(KIND) + tl.load(bias + column, mask=column < width).to(KIND)[None, :]
    s, _ = _parts(x, TANH)
    tl.store(out + places, (x * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    gradients: tl.tensor,
    hidden: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    TANH: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    turn = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < width
    shift = tl.load(bias + column, mask=there).to(KIND)[None, :]
    total = tl.zeros([ROWS, COLUMNS], KIND)
    for tile in range(turn, tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & there[None, :]
        places = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(hidden + places, mask=inside).to(KIND) + shift
        s, slope = _parts(x, TANH)
        gradient = tl.load(gradients + places, mask=inside, other=0.0).to(KIND) * (s + x * slope)
        tl.store(out + places, gradient.to(out.dtype.element_ty), mask=inside)
        total += tl.where(inside, gradient, 0.0)
    tl.store(sums + turn * width + column, tl.sum(total, 0), mask=there)
