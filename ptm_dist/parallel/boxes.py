"""What a rank holds of a tensor when that is not one box: a range of elements in the order of memory is several.

The first may be the rest of a row, the next one whole rows, the last one the start of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from torch import Tensor

from ptm_dist.parallel.shards import LocalShard

Held: TypeAlias = LocalShard | tuple[LocalShard, ...]
"""All that a rank holds of one tensor: a box, or several that do not overlap, at least one (it may be empty)."""


def boxes_of(held: Held) -> tuple[LocalShard, ...]:
    """The boxes, however many."""
    return (held,) if isinstance(held, LocalShard) else held


def global_shape_of(held: Held) -> tuple[int, ...]:
    """Shape of the whole tensor."""
    return boxes_of(held)[0].global_shape


def boxes_of_range(values: Tensor, shape: tuple[int, ...], begin: int) -> tuple[LocalShard, ...]:
    """The boxes that a range of a flattened tensor is made of; writing to them writes `values`.

    Args:
        values: the elements, ``[n]``, contiguous; n may be 0.
        shape: of the whole tensor, one dimension or more.
        begin: place of the first element in the flattened tensor.
    """
    if not values.numel():
        return (LocalShard(values.view(0, *shape[1:]), shape, (0,) * len(shape)),)
    boxes, place = [], 0
    for offset, box_shape in _pieces(shape, begin, begin + values.numel()):
        size = math.prod(box_shape)
        boxes.append(LocalShard(values[place : place + size].view(box_shape), shape, offset))
        place += size
    return tuple(boxes)


def _pieces(shape: tuple[int, ...], begin: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and shapes of the boxes between two places that are not the same, in the order of memory."""
    if len(shape) == 1:
        yield (begin,), (end - begin,)
        return
    row = math.prod(shape[1:])
    first_whole, end_whole = -(-begin // row), end // row
    if first_whole > end_whole:
        yield from _within_row(shape, end_whole, begin, end)
        return
    if begin < first_whole * row:
        yield from _within_row(shape, first_whole - 1, begin, first_whole * row)
    if first_whole < end_whole:
        yield (first_whole, *(0,) * (len(shape) - 1)), (end_whole - first_whole, *shape[1:])
    if end_whole * row < end:
        yield from _within_row(shape, end_whole, end_whole * row, end)


def _within_row(
    shape: tuple[int, ...], index: int, begin: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    start = index * math.prod(shape[1:])
    for offset, box_shape in _pieces(shape[1:], begin - start, end - start):
        yield (index, *offset), (1, *box_shape)
