"""Which places stay when some are dropped: random numbers compared with a threshold.

The plain form makes tensors of 64-bit words many times as large as the mask. On a CPU that is bound by memory, so there
numpy draws as many numbers at a time as the cache holds, in place: the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptm_dist.kernels.philox import MULTIPLIERS, PER_COUNTER, ROUNDS, WEYL, octets16

_COUNTERS = 1 << 14
"""Drawn at a time: their words and products take a megabyte."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_WIDE = np.array(MULTIPLIERS, np.uint64)[:, None, None]

Wide = NDArray[np.uint64]


def at_least(least: int, counter: tuple[Tensor, Tensor, Tensor], size: int, key: Tensor) -> Tensor:
    """Whether the numbers of :func:`ptm_dist.kernels.philox.uniform16` reach a threshold.

    Args:
        least: the threshold, from 0 to 65535.
        counter: three words, int64 tensors from 0 to 2^32 - 1 that broadcast to one shape ``[...]``.
        size: numbers for each place.
        key: two words, ``[2]``, int64.

    Returns: ``[..., size]``, bool.
    """
    octets = torch.arange(-(-size // PER_COUNTER), device=key.device)
    return octets_at_least(least, counter, octets, key)[..., :size]


def octets_at_least(least: int, counter: tuple[Tensor, Tensor, Tensor], octets: Tensor, key: Tensor) -> Tensor:
    """Whether the numbers of :func:`ptm_dist.kernels.philox.octets16` reach a threshold.

    Args:
        least: see :func:`at_least`.
        counter: see :func:`at_least`.
        octets: groups of 8 indices, ``[n]``, int64.
        key: two words, ``[2]``, int64.

    Returns: ``[..., 8 n]``, bool, the groups one after the other.
    """
    if key.device.type == "cpu" and not torch.compiler.is_compiling():
        return _at_least_on_cpu(least, counter, octets.numpy().astype(np.uint64), key)
    return octets16(counter, octets, (key[0], key[1])) >= least


def _at_least_on_cpu(least: int, counter: tuple[Tensor, Tensor, Tensor], octets: Wide, key: Tensor) -> Tensor:
    places = torch.broadcast_tensors(*counter)
    rows = [word.reshape(-1, 1).numpy().astype(np.uint64) for word in places]
    keys = _round_keys(*key.tolist())
    found = np.empty((len(rows[0]), len(octets) * PER_COUNTER), np.bool_)
    step = max(1, min(len(found), _COUNTERS // max(1, len(octets))))
    room = np.empty((3, 2, step, len(octets)), np.uint64)
    words = np.empty((step, len(octets), 4), "<u4")
    for first in range(0, len(found), step):
        part = [word[first : first + step] for word in rows]
        drawn = words[: len(part[0])]
        _draw((octets, *part), keys, room[:, :, : len(part[0])], drawn)
        halves = drawn.view("<u2").reshape(len(drawn), -1)
        np.greater_equal(halves, np.uint16(least), out=found[first : first + step])
    return torch.from_numpy(found).reshape(*places[0].shape, found.shape[1])


def _round_keys(k0: int, k1: int) -> list[Wide]:
    keys = [[k0 + turn * WEYL[0], k1 + turn * WEYL[1]] for turn in range(ROUNDS)]
    return [np.array(pair, np.uint64)[:, None, None] & _LOW for pair in keys]


def _draw(counter: Sequence[Wide], keys: list[Wide], room: Wide, words: NDArray[np.uint32]) -> None:
    """Four words for each counter.

    Args:
        counter: four words that broadcast to ``[rows, columns]``.
        keys: of every round, ``[2, 1, 1]``.
        room: ``[3, 2, rows, columns]``, overwritten.
        words: ``[rows, columns, 4]``, the result.
    """
    c0, c1, c2, c3 = counter
    for key in keys[:2]:  # Not every word depends on row and column yet, so these rounds are small.
        first, second = c0 * _WIDE[0], c2 * _WIDE[1]
        c0, c2 = ((second >> _HALF) ^ c1 ^ key[0]) & _LOW, ((first >> _HALF) ^ c3 ^ key[1]) & _LOW
        c1, c3 = second & _LOW, first & _LOW
    # c0 and c2 lie in `even`, c1 and c3 in the lower halves of `odd`.
    even, odd, product = room
    even[0], even[1], odd[0], odd[1] = c0, c2, c1, c3
    for key in keys[2:]:
        np.multiply(even, _WIDE, out=product)
        swapped = product[::-1]
        np.right_shift(swapped, _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, key, out=even)
        np.bitwise_and(even, _LOW, out=even)
        odd, product = swapped, odd
    words[..., 0], words[..., 1], words[..., 2], words[..., 3] = even[0], odd[0], even[1], odd[1]
