"""Attention with dropout of its probabilities, a block of scores at a time; see ptm_dist/kernels/attention.py.

The algorithm is FlashAttention-2's (arXiv 2307.08691): no scores in memory, softmax by powers of 2. Each program has
some queries of a head. The mask of dropout is drawn beside the scores.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.attention_blocks import like_hidden_states
from ptm_dist.kernels.seen import Seen
from ptm_dist.kernels.triton.attention_masks import in_turn, kept, visible
from ptm_dist.kernels.triton.attention_parts import (
    LOG2_E,
    SMALL,
    Tile,
    arguments,
    load_rows,
    product,
    store_rows,
)
from ptm_dist.kernels.wide import wide_dtype


@triton.jit
def _forward(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    mask: tl.tensor,
    output: tl.tensor,
    lse: tl.tensor,
    words: tl.tensor,
    samples: tl.tensor,
    query_places: tl.tensor,
    key_places: tl.tensor,
    query_sample: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    key_sample: tl.tensor,
    key_head: tl.tensor,
    key_row: tl.tensor,
    value_sample: tl.tensor,
    value_head: tl.tensor,
    value_row: tl.tensor,
    mask_sample: tl.tensor,
    mask_head: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
    heads: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    first_head: tl.tensor,
    THRESHOLD: tl.constexpr,
    CAUSAL: tl.constexpr,
    BY_KEY: tl.constexpr,
    IN_OCTETS: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SCORE_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
    REAL: tl.constexpr,
) -> None:
    """Output and log-sum-exp of ROWS queries."""
    first = tl.program_id(0) * ROWS
    pair = tl.program_id(1).to(tl.int64)
    sample, head = pair // heads, pair % heads
    row = first + tl.arange(0, ROWS)
    to_exponent = tl.full([1, 1], SCORE_SCALE * LOG2_E, REAL)
    seed = tl.load(words).to(tl.uint64) | (tl.load(words + 1).to(tl.uint64) << 32)
    sample_word = tl.load(samples + sample).to(tl.uint32)
    head_word = (first_head + head).to(tl.uint32)
    query_place = tl.load(query_places + row, mask=row < rows, other=0).to(tl.uint32)
    query += sample * query_sample + head * query_head
    key += sample * key_sample + head * key_head
    value += sample * value_sample + head * value_head
    if mask is not None:
        mask += sample * mask_sample + head * mask_head
    queries = load_rows(query, query_row, row, rows, HEAD, WIDTH, DOT)
    mixed = tl.zeros([ROWS, WIDTH], REAL)
    total = tl.zeros([ROWS], REAL)
    highest = tl.full([ROWS], float("-inf"), REAL)
    end = columns
    if CAUSAL:
        end = tl.minimum(first + ROWS, columns)
    for start in range(0, end, COLUMNS):
        column = start + in_turn(COLUMNS)
        keys = load_rows(key, key_row, column, columns, HEAD, WIDTH, DOT)
        scores = product(queries, tl.trans(keys), DOT, REAL) * to_exponent
        seen = visible(mask, mask_row, mask_column, row, column, rows, columns, CAUSAL, BY_KEY)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # Where nothing was seen yet, the difference of two infinities would be no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(weights, 1)
        highest = higher
        stays = kept(
            seed, sample_word, head_word, query_place, key_places, start, columns, THRESHOLD, IN_OCTETS, ROWS, COLUMNS
        )
        weights = tl.where(stays, weights, 0.0)
        values = load_rows(value, value_row, column, columns, HEAD, WIDTH, DOT)
        mixed = mixed * shrink[:, None] + product(weights, values, DOT, REAL)
    scale = tl.full([1], 65536 / (65536 - THRESHOLD), REAL)
    total = tl.where(total == 0.0, 1.0, total)  # of a query that sees nothing
    mixed = mixed * (scale / total)[:, None]
    output += (sample * rows * heads + head) * HEAD
    store_rows(output, heads * HEAD, row, rows, mixed, HEAD, WIDTH)
    natural = (highest + tl.log2(total)) * tl.full([1], 1 / LOG2_E, REAL)
    tl.store(lse + pair * rows + row, natural, mask=row < rows)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """As :func:`ptm_dist.kernels.attention_blocks.attend_in_blocks`; there is dropout."""
    output = like_hidden_states(query)
    lse = query.new_empty(query.shape[:3], dtype=wide_dtype(query.dtype))
    tile = _tile(query, seen)
    grid = (triton.cdiv(query.shape[2], tile.rows), query.shape[0] * query.shape[1])
    _forward[grid](output=output, lse=lse, **arguments(query, key, value, seen), **tile.options())
    return output, lse


def _tile(query: Tensor, seen: Seen) -> Tile:
    """The largest blocks whose programs keep to their registers; keys one by one take more of them."""
    if query.device.type == "cpu":
        return SMALL
    if query.element_size() > 2:
        return Tile(32, 32, 8, 1)
    if seen.drop is not None and not seen.drop.in_octets:
        return Tile(64, 32, 8, 2)
    return Tile(128, 64, 8, 3) if query.shape[-1] <= 64 else Tile(64, 64, 4, 2)
