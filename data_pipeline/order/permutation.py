"""Permutations that are computed, not stored: a keyed Feistel network (Luby & Rackoff 1988).

One of [0, n) comes from that of the next power of four by cycle walking (Black & Rogaway 2002).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_MIN_HALF_BITS = 2
"""Halves of one bit have only four round functions; from two bits on, all orders of few samples are as likely."""
_MAX_SAMPLES = 1 << 62


def derive_key(*parts: int | str) -> int:
    """A 128-bit key from parts such as (seed, source, epoch): equal only for equal parts in equal order.

    A hash, not a sum: seed 7 in epoch 1 has nothing in common with seed 8 in epoch 0.
    """
    digest = blake2b(digest_size=16, person=b"ptm-dist order")
    for part in parts:
        text = (b"s" + part.encode()) if isinstance(part, str) else b"i%d" % part
        digest.update(b"%d:" % len(text) + text)
    return int.from_bytes(digest.digest(), "little")


class Permutation:
    """A permutation of [0, n) that is computed, not stored: O(1) memory, the same on every platform.

    Args:
        n: how many values, 1 to 2^62.
        key: which permutation; see :func:`derive_key`.

    Raises:
        ValueError: n is out of range.
    """

    def __init__(self, n: int, key: bytes | int) -> None:
        if not 1 <= n <= _MAX_SAMPLES:
            raise ValueError(f"a permutation of {n} values; 1 to {_MAX_SAMPLES} are possible")
        self._n = n
        self._half_bits = np.uint64(max(_MIN_HALF_BITS, ((n - 1).bit_length() + 1) // 2))
        self._round_keys = _round_keys(key)

    def __call__(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where each index goes.

        Args:
            indices: values in [0, n), any shape and integer dtype.

        Returns: values in [0, n), same shape, int64; different for different indices.
        Raises: IndexError if an index is outside [0, n).
        """
        given = np.asarray(indices)
        if given.size and (given.min() < 0 or given.max() >= self._n):
            raise IndexError(f"indices must lie in [0, {self._n})")
        values = self._encrypt(given.ravel().astype(np.uint64))
        outside = np.flatnonzero(values >= self._n)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self._n]
        return values.astype(np.int64).reshape(given.shape)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass of the network: a permutation of [0, 4^half_bits)."""
        mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        left, right = values >> self._half_bits, values & mask
        for key in self._round_keys:
            left, right = right, left ^ (mix_words(right ^ key) & mask)
        return (left << self._half_bits) | right


def _round_keys(key: bytes | int) -> list[np.uint64]:
    data = key if isinstance(key, bytes) else b"%d" % key
    digest = blake2b(data, digest_size=8 * _ROUNDS, person=b"ptm-dist feistel").digest()
    return [np.uint64(word) for word in np.frombuffer(digest, dtype="<u8")]


def mix_words(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014), in place: every input bit moves every output bit."""
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= np.uint64(0x94D049BB133111EB)
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values
