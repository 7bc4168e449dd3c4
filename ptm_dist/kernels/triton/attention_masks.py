"""The masks of ptm_dist/kernels/seen.py for a block of scores, inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def visible(
    mask: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    CAUSAL: tl.constexpr,
    BY_KEY: tl.constexpr,
) -> tl.tensor:
    """Which of some keys some queries see, bool, ``[ROWS, COLUMNS]``, or ``[1, COLUMNS]`` where queries see the same.

    Args:
        mask: of the sample and head, bool; None: there is none.
        row_stride: from query to query in `mask`.
        column_stride: from key to key in `mask`.
        row: numbers of the queries, ``[ROWS]``.
        column: numbers of the keys, ``[COLUMNS]``.
        rows: how many queries there are.
        columns: how many keys there are.
        CAUSAL: a query sees keys up to its own number.
        BY_KEY: all queries have the same mask.
    """
    seen = column[None, :] < columns
    if CAUSAL:
        seen = seen & (column[None, :] <= row[:, None])
    if mask is not None:
        at = mask + column[None, :] * column_stride
        if BY_KEY:
            seen = seen & (tl.load(at, mask=seen, other=0) != 0)
        else:
            here = seen & (row[:, None] < rows)
            seen = tl.load(at + row[:, None] * row_stride, mask=here, other=0) != 0
    return seen


@triton.jit
def in_turn(COLUMNS: tl.constexpr) -> tl.tensor:
    """The order in which a block has its keys.

    Where a tensor core's result has columns 8 j + 2 t and 8 j + 2 t + 1 for j from 0 to 3 in one thread, as in all that
    compute with 16 bits, this puts the 8 keys from 8 t on: those that share a draw of random numbers.
    """
    column = tl.arange(0, COLUMNS)
    return column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2


@triton.jit
def kept(
    seed: tl.tensor,
    sample: tl.tensor,
    head: tl.tensor,
    query_place: tl.tensor,
    key_places: tl.tensor,
    start: tl.tensor,
    columns: tl.tensor,
    THRESHOLD: tl.constexpr,
    IN_OCTETS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """Which probabilities dropout leaves, bool, ``[ROWS, COLUMNS]``.

    Args:
        seed: two words in one, uint64.
        sample: uint32.
        head: uint32.
        query_place: of the queries in the sequence, ``[ROWS]``, uint32.
        key_places: of all keys in the sequence, int64.
        start: first key of the block, a multiple of 32.
        columns: how many keys there are.
        THRESHOLD: of 65536 equally likely numbers, those below it drop.
        IN_OCTETS: see :class:`ptm_dist.kernels.seen.AttentionDrop`.
        ROWS: queries of the block.
        COLUMNS: keys of the block, which it has :func:`in_turn`.
    """
    column = start + (tl.arange(0, COLUMNS // 8) * 8 if IN_OCTETS else in_turn(COLUMNS))
    place = tl.load(key_places + column, mask=column < columns, other=0).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = tl.philox(seed, place // 8, query_place[:, None], sample, head)
    if IN_OCTETS:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
        words = tl.permute(tl.reshape(words, [ROWS, COLUMNS // 32, 4, 2, 2]), [0, 1, 3, 4, 2])
        numbers = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [ROWS, COLUMNS])
        stays = numbers >= THRESHOLD
    else:
        which = place % 8 // 2
        word = tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))
        stays = ((word >> (place % 2 * 16)) & 0xFFFF) >= THRESHOLD
    return stays
