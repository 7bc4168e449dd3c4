"""Which box of a global tensor a rank holds: the one description that init, checkpoints and tests share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LocalShard:
    """This rank's box of a global tensor.

    Attributes:
        local: the values, a tensor that is written in place to load; empty when the rank holds nothing.
        global_shape: shape of the whole tensor.
        offset: first index of the box in each dimension.
    """

    local: Tensor
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]

    def cut(self, whole: Tensor) -> Tensor:
        """The part of `whole` (of `global_shape`) that belongs in this box."""
        ranges = zip(self.offset, self.local.shape, strict=True)
        return whole[tuple(slice(start, start + size) for start, size in ranges)]


def chunk_range(size: int, parts: int, index: int) -> tuple[int, int]:
    """First and last-plus-one index of chunk `index` when `size` is split as :func:`torch.chunk` does.

    Chunks are ``ceil(size / parts)`` long; the last ones are shorter or empty.
    """
    length = -(-size // parts)
    return min(size, index * length), min(size, (index + 1) * length)


def balanced_range(size: int, parts: int, index: int, unit: int = 1) -> tuple[int, int]:
    """First and last-plus-one index of part `index` when whole units are shared as evenly as can be.

    The first parts have a unit more than the last ones where `parts` does not divide their number, and some parts
    are empty where there are fewer units than parts.

    Args:
        size: a multiple of `unit`.
        parts: how many.
        index: which one.
        unit: what stays together, such as the rows of an attention head.
    """
    each, more = divmod(size // unit, parts)
    begin = index * each + min(index, more)
    end = begin + each + (index < more)
    return begin * unit, end * unit
