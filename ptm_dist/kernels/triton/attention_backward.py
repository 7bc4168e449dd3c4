"""The gradient of attention with dropout of its probabilities; see ptm_dist/kernels/triton/attention.py.

A program of the first kernel has some queries, one of the second some keys, so that no two programs add to the same
place and results are the same bits every time. Each draws the mask of dropout again.
"""

from __future__ import annotations

import torch
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
    as_hidden_states,
    load_rows,
    product,
    store_rows,
)


@triton.jit
def _backward_queries(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    mask: tl.tensor,
    output: tl.tensor,
    of_output: tl.tensor,
    of_query: tl.tensor,
    lse: tl.tensor,
    means: tl.tensor,
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
    """Gradients of ROWS queries, and for each the product of output and its gradient, `means`, for the other kernel."""
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
    packed = (sample * rows * heads + head) * HEAD
    queries = load_rows(query, query_row, row, rows, HEAD, WIDTH, DOT)
    outputs = load_rows(output + packed, heads * HEAD, row, rows, HEAD, WIDTH, REAL)
    grads = load_rows(of_output + packed, heads * HEAD, row, rows, HEAD, WIDTH, DOT)
    mean = tl.sum(outputs * grads.to(REAL), 1)
    tl.store(means + pair * rows + row, mean, mask=row < rows)
    level = tl.load(lse + pair * rows + row, mask=row < rows, other=float("inf")) * tl.full([1], LOG2_E, REAL)
    scale = tl.full([1, 1], 65536 / (65536 - THRESHOLD), REAL)
    found = tl.zeros([ROWS, WIDTH], REAL)
    end = columns
    if CAUSAL:
        end = tl.minimum(first + ROWS, columns)
    for start in range(0, end, COLUMNS):
        column = start + in_turn(COLUMNS)
        keys = load_rows(key, key_row, column, columns, HEAD, WIDTH, DOT)
        values = load_rows(value, value_row, column, columns, HEAD, WIDTH, DOT)
        scores = product(queries, tl.trans(keys), DOT, REAL) * to_exponent
        seen = visible(mask, mask_row, mask_column, row, column, rows, columns, CAUSAL, BY_KEY)
        weights = tl.exp2(tl.where(seen, scores - level[:, None], float("-inf")))
        stays = kept(
            seed, sample_word, head_word, query_place, key_places, start, columns, THRESHOLD, IN_OCTETS, ROWS, COLUMNS
        )
        of_weights = tl.where(stays, product(grads, tl.trans(values), DOT, REAL) * scale, 0.0)
        of_scores = weights * (of_weights - mean[:, None])
        found += product(of_scores, keys, DOT, REAL)
    store_rows(of_query + packed, heads * HEAD, row, rows, found * tl.full([1, 1], SCORE_SCALE, REAL), HEAD, WIDTH)


@triton.jit
def _backward_keys(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    mask: tl.tensor,
    of_output: tl.tensor,
    of_key: tl.tensor,
    of_value: tl.tensor,
    lse: tl.tensor,
    means: tl.tensor,
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
    """Gradients of COLUMNS keys and values."""
    start = tl.program_id(0) * COLUMNS
    pair = tl.program_id(1).to(tl.int64)
    sample, head = pair // heads, pair % heads
    column = start + in_turn(COLUMNS)
    to_exponent = tl.full([1, 1], SCORE_SCALE * LOG2_E, REAL)
    seed = tl.load(words).to(tl.uint64) | (tl.load(words + 1).to(tl.uint64) << 32)
    sample_word = tl.load(samples + sample).to(tl.uint32)
    head_word = (first_head + head).to(tl.uint32)
    query += sample * query_sample + head * query_head
    key += sample * key_sample + head * key_head
    value += sample * value_sample + head * value_head
    if mask is not None:
        mask += sample * mask_sample + head * mask_head
    of_output += (sample * rows * heads + head) * HEAD
    lse += pair * rows
    means += pair * rows
    keys = load_rows(key, key_row, column, columns, HEAD, WIDTH, DOT)
    values = load_rows(value, value_row, column, columns, HEAD, WIDTH, DOT)
    scale = tl.full([1, 1], 65536 / (65536 - THRESHOLD), REAL)
    key_sum = tl.zeros([COLUMNS, WIDTH], REAL)
    value_sum = tl.zeros([COLUMNS, WIDTH], REAL)
    begin = 0
    if CAUSAL:
        begin = start // ROWS * ROWS
    for first in range(begin, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        queries = load_rows(query, query_row, row, rows, HEAD, WIDTH, DOT)
        grads = load_rows(of_output, heads * HEAD, row, rows, HEAD, WIDTH, DOT)
        level = tl.load(lse + row, mask=row < rows, other=float("inf")) * tl.full([1], LOG2_E, REAL)
        mean = tl.load(means + row, mask=row < rows, other=0.0)
        scores = product(queries, tl.trans(keys), DOT, REAL) * to_exponent
        seen = visible(mask, mask_row, mask_column, row, column, rows, columns, CAUSAL, BY_KEY)
        weights = tl.exp2(tl.where(seen, scores - level[:, None], float("-inf")))
        query_place = tl.load(query_places + row, mask=row < rows, other=0).to(tl.uint32)
        stays = kept(
            seed, sample_word, head_word, query_place, key_places, start, columns, THRESHOLD, IN_OCTETS, ROWS, COLUMNS
        )
        value_sum += product(tl.trans(tl.where(stays, weights, 0.0).to(DOT)), grads, DOT, REAL)
        of_weights = tl.where(stays, product(grads, tl.trans(values), DOT, REAL) * scale, 0.0)
        of_scores = weights * (of_weights - mean[:, None])
        key_sum += product(tl.trans(of_scores.to(DOT)), queries, DOT, REAL)
    packed = (sample * columns * heads + head) * HEAD
    key_sum *= tl.full([1, 1], SCORE_SCALE, REAL)
    store_rows(of_key + packed, heads * HEAD, column, columns, key_sum, HEAD, WIDTH)
    store_rows(of_value + packed, heads * HEAD, column, columns, value_sum * scale, HEAD, WIDTH)


def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`ptm_dist.kernels.attention_blocks.attend_in_blocks_backward`; there is dropout."""
    of_query, of_key, of_value = (like_hidden_states(tensor) for tensor in (query, key, value))
    shared = arguments(query, key, value, seen) | {"of_output": as_hidden_states(grad), "lse": lse.contiguous()}
    shared["means"] = torch.empty_like(shared["lse"])
    pairs = query.shape[0] * query.shape[1]
    by_query, by_key = _tiles(query, seen)
    grid = (triton.cdiv(query.shape[2], by_query.rows), pairs)
    _backward_queries[grid](output=as_hidden_states(output), of_query=of_query, **shared, **by_query.options())
    grid = (triton.cdiv(key.shape[2], by_key.columns), pairs)
    _backward_keys[grid](of_key=of_key, of_value=of_value, **shared, **by_key.options())
    return of_query, of_key, of_value


def _tiles(query: Tensor, seen: Seen) -> tuple[Tile, Tile]:
    """Of the kernel by queries and of that by keys: the largest blocks whose programs keep to their registers."""
    if query.device.type == "cpu":
        return SMALL, SMALL
    if query.element_size() > 2:
        return Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)
    one_by_one = seen.drop is not None and not seen.drop.in_octets
    return Tile(64, 32, 8 if one_by_one else 4, 2), Tile(32, 64, 8, 2)
