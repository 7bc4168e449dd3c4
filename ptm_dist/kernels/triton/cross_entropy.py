"""Cross entropy of rows of logits, a program for each row: the logits are read, and their gradient is written, once.

A row of a vocabulary is a few hundred kilobytes at most, so that the second pass over it finds it in the cache.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.cross_entropy import NUM_STATISTICS, Columns, CrossEntropy
from ptm_dist.kernels.triton.wide import wide_type
from ptm_dist.kernels.wide import wide_dtype

_LARGEST_BLOCK = 4096
"""Columns at a time: with 8 warps, 16 for each thread."""


def launch(
    logits: Tensor, targets: Tensor, columns: Columns, kind: CrossEntropy, known: Tensor | None, *, gradient: bool
) -> Tensor:
    """Statistics and gradient of rows; see :mod:`ptm_dist.kernels.cross_entropy`.

    Args:
        logits: ``[rows, columns]``, at least one of each, columns side by side; float dtype.
        targets: ``[rows]``, int64.
        columns: which they are.
        kind: of the loss.
        known: statistics of whole rows, ``[5, rows]``, side by side; then none are made.
        gradient: write the gradient in place of the logits.

    Returns: statistics, ``[5, rows]``, float32 or float64.
    """
    rows, width = logits.shape
    wide = wide_dtype(logits.dtype)
    statistics = logits.new_empty(NUM_STATISTICS, rows, dtype=wide) if known is None else known
    block = min(triton.next_power_of_2(width), _LARGEST_BLOCK)
    grid: Any = (rows,)
    _rows[grid](
        logits,
        targets,
        statistics,
        rows,
        width,
        logits.stride(0),
        columns.begin,
        IGNORED=IGNORE_INDEX,
        SMOOTHING=kind.smoothing,
        SPREAD=kind.smoothing / columns.vocab_size,
        Z_LOSS=kind.z_loss,
        WIDE=wide_type(wide),
        MAKES_STATISTICS=known is None,
        MAKES_GRADIENT=gradient,
        COUNTS_HITS=kind.counts_hits,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return statistics


@triton.jit
def _rows(
    logits: tl.tensor,
    targets: tl.tensor,
    statistics: tl.tensor,
    rows: int,
    width: int,
    stride: int,
    begin: int,
    IGNORED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SPREAD: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WIDE: tl.constexpr,
    MAKES_STATISTICS: tl.constexpr,
    MAKES_GRADIENT: tl.constexpr,
    COUNTS_HITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    place = logits + tl.cast(row, tl.int64) * stride
    target = tl.load(targets + row)
    is_counted = target != IGNORED
    local = target - begin
    is_here = is_counted & (local >= 0) & (local < width)
    if MAKES_STATISTICS:
        # Read before any thread writes its part of the row: reductions stand between, at which all wait.
        own = tl.load(place + tl.where(is_here, local, 0)).to(WIDE)
        highest, total, everything, likeliest = _row_statistics(place, width, WIDE, COUNTS_HITS, SMOOTHING > 0.0, BLOCK)
        tl.store(statistics + row, highest)
        tl.store(statistics + rows + row, total)
        tl.store(statistics + 2 * rows + row, tl.where(is_here, own, 0.0))
        tl.store(statistics + 3 * rows + row, everything)
        is_hit = is_here & (likeliest == local)
        tl.store(statistics + 4 * rows + row, tl.where(is_hit, 1.0, 0.0) if COUNTS_HITS else 0.0)
    else:
        highest = tl.load(statistics + row)
        total = tl.load(statistics + rows + row)
    if MAKES_GRADIENT:
        # Numbers of float64 would be rounded to float32 as arguments or by `where`.
        scale = tl.full((), 2.0 * Z_LOSS, WIDE) * (tl.log(total) + highest) + 1.0
        scale = tl.where(is_counted, scale / total, 0.0)
        spread = is_counted.to(WIDE) * tl.full((), SPREAD, WIDE)
        hit = is_here.to(WIDE) * tl.full((), 1.0 - SMOOTHING, WIDE)
        whole = width // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            _write_gradient(place, start, width, local, highest, scale, spread, hit, WIDE, False, BLOCK)
        if whole < width:
            _write_gradient(place, whole, width, local, highest, scale, spread, hit, WIDE, True, BLOCK)


@triton.jit
def _row_statistics(
    place: tl.tensor,
    width: int,
    WIDE: tl.constexpr,
    COUNTS_HITS: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Highest, sum of exponentials below it, sum, and place of the first highest one (Milakov & Gimelshein 2018)."""
    highest = tl.full((), float("-inf"), WIDE)
    total = tl.full((), 0.0, WIDE)
    everything = tl.full((), 0.0, WIDE)
    likeliest = tl.full((), 0, tl.int32)
    whole = width // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        highest, total, everything, likeliest = _add_block(
            place, start, width, highest, total, everything, likeliest, WIDE, COUNTS_HITS, SUMS, False, BLOCK
        )
    if whole < width:
        highest, total, everything, likeliest = _add_block(
            place, whole, width, highest, total, everything, likeliest, WIDE, COUNTS_HITS, SUMS, True, BLOCK
        )
    return highest, total, everything, likeliest


@triton.jit
def _add_block(
    place: tl.tensor,
    start: int,
    width: int,
    highest: tl.tensor,
    total: tl.tensor,
    everything: tl.tensor,
    likeliest: tl.tensor,
    WIDE: tl.constexpr,
    COUNTS_HITS: tl.constexpr,
    SUMS: tl.constexpr,
    IS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The statistics of a row with another block taken in."""
    offsets = start + tl.arange(0, BLOCK)
    values = _load(place, offsets, width, float("-inf"), IS_LAST).to(WIDE)
    here = tl.max(values, 0)
    if COUNTS_HITS:
        first = tl.min(tl.where(values == here, offsets, width), 0)
        likeliest = tl.where(here > highest, first, likeliest)
    if SUMS:
        everything += tl.sum(tl.where(offsets < width, values, 0.0), 0)
    new = tl.maximum(highest, here)
    # Where all so far is minus infinity, that minus itself is no number.
    level = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(highest - level) + tl.sum(tl.exp(values - level), 0)
    return new, total, everything, likeliest


@triton.jit
def _write_gradient(
    place: tl.tensor,
    start: int,
    width: int,
    local: tl.tensor,
    highest: tl.tensor,
    scale: tl.tensor,
    spread: tl.tensor,
    hit: tl.tensor,
    WIDE: tl.constexpr,
    IS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of logits becomes its gradient."""
    offsets = start + tl.arange(0, BLOCK)
    values = _load(place, offsets, width, 0.0, IS_LAST).to(WIDE)
    found = tl.exp(values - highest) * scale - spread - tl.where(offsets == local, hit, 0.0)
    if IS_LAST:
        tl.store(place + offsets, found, mask=offsets < width)
    else:
        tl.store(place + offsets, found)


@triton.jit
def _load(
    place: tl.tensor,
    offsets: tl.tensor,
    width: int,
    missing: float,
    IS_LAST: tl.constexpr,
) -> tl.tensor:
    """Blocks before the last one need no mask, without which many values are loaded at a time."""
    if IS_LAST:
        return tl.load(place + offsets, mask=offsets < width, other=missing)
    else:
        return tl.load(place + offsets)
