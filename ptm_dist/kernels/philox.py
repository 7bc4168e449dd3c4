"""Random numbers that are a function of a key and a place: Philox4x32-10.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Words are 32 bits wide and kept in int64, so
that the same operations run on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
_MASK = 0xFFFFFFFF


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter.

    Args:
        counter: four words, int64 tensors that broadcast to one shape.
        key: two words, int64 tensors that broadcast with them.

    Returns: four words of the common shape, int64, each from 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # Products wrap around in int64; their 64 bits are right all the same.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _MASK) ^ c1 ^ k0,
            second & _MASK,
            ((first >> 32) & _MASK) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return c0, c1, c2, c3


_STEPS = 1 << 16
PER_COUNTER = 8
"""Draws of 16 bits that a counter gives."""


def uniform16(counter: tuple[Tensor, Tensor, Tensor], size: int, key: tuple[Tensor, Tensor]) -> Tensor:
    """Whole numbers from 0 to 65535, `size` for each place.

    The number of index i is 16 bits of the words for the counter ``(i // 8, *counter)``: of word ``i % 8 // 2``, the
    lower half where i is even, the upper one where it is odd.

    Args:
        counter: three words, int64 tensors that broadcast to one shape ``[...]``.
        size: numbers for each place.
        key: two words.

    Returns: ``[..., size]``, int64.
    """
    octets = torch.arange(-(-size // PER_COUNTER), device=key[0].device)
    return octets16(counter, octets, key)[..., :size]


def octets16(counter: tuple[Tensor, Tensor, Tensor], octets: Tensor, key: tuple[Tensor, Tensor]) -> Tensor:
    """The numbers of :func:`uniform16` for some groups of 8 indices.

    Args:
        counter: as there.
        octets: the groups, ``[n]``, int64: number o has indices 8 o to 8 o + 7.
        key: two words.

    Returns: ``[..., 8 n]``, int64, the groups one after the other.
    """
    c1, c2, c3 = (word[..., None] for word in counter)
    words = philox((octets, c1, c2, c3), (key[0][..., None], key[1][..., None]))
    halves = torch.stack([half for word in words for half in (word & (_STEPS - 1), word >> 16)], dim=-1)
    return halves.flatten(-2)


def threshold(probability: float) -> int:
    """Of 65536 equally likely numbers, those below it happen with this probability, as near as may be."""
    return min(round(probability * _STEPS), _STEPS - 1)


def keep_scale(probability: float) -> float:
    """What is left after dropout is multiplied by it, so that its expectation stays: by the probability as drawn."""
    return _STEPS / (_STEPS - threshold(probability))
