"""The random numbers of samples, by arithmetic: number j of a sample is a hash of the sample's key and j.

Nothing is drawn in turn, so the numbers of a whole batch are found in a few operations, and what one choice takes
does not move the next. The hash is SplitMix64 (Steele, Lea & Flood 2014): numbers j = 0, 1, 2... of a key are the
output of that generator started at the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import derive_key, mix_words

_STEP = np.uint64(0x9E3779B97F4A7C15)
"""What the state of SplitMix64 grows by."""


class Purpose(IntEnum):
    """What numbers are drawn for; each purpose has 2^32 numbers of its own."""

    HIDDEN = 0
    REPLACEMENT = 1
    RANDOM_ID = 2
    NGRAMS = 3
    PAIR = 4
    TRIMMING = 5


@dataclass(frozen=True)
class SampleKeys:
    """What the random choices of a sample depend on, beside its index and the epoch.

    Attributes:
        seed: of the run.
        objective: two objectives over the same text choose independently.
        source: name of the data set.
        copies: different random choices made of a sample; epoch e reads copy e mod `copies` (static masking).
            0 chooses anew in every epoch (dynamic masking).

    Raises:
        ValueError: a negative number of copies.
    """

    seed: int
    objective: str
    source: str
    copies: int

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise ValueError(f"{self.copies} copies of a sample; 0 makes another one in every epoch")

    def __call__(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The key of each sample in its epoch, [n], uint64; no two samples of one epoch share one."""
        both = derive_key(self.seed, self.objective, self.source)
        first, second = np.uint64(both >> 64), np.uint64(both & 0xFFFF_FFFF_FFFF_FFFF)
        copies = np.asarray(epochs, dtype=np.int64)
        copies = copies % self.copies if self.copies else copies
        keys = mix_words(copies.astype(np.uint64) * _STEP + first)
        return mix_words(keys + np.asarray(indices).astype(np.uint64) * _STEP + second)


def random_words(keys: NDArray[np.uint64], purpose: Purpose, numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Random 64-bit words: number j of the purpose for each key.

    Args:
        keys: of samples, any shape that goes with `numbers`.
        purpose: what for.
        numbers: j, from 0 to 2^32 - 1.

    Returns: uniform over all words, of the common shape, uint64.
    """
    counters = numbers.astype(np.uint64) + np.uint64((int(purpose) << 32) + 1)
    return mix_words(counters * _STEP + keys)


def uniforms(keys: NDArray[np.uint64], purpose: Purpose, numbers: NDArray[np.integer]) -> NDArray[np.float64]:
    """Random numbers in [0, 1), of 53 bits; see :func:`random_words`."""
    return (random_words(keys, purpose, numbers) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def with_number(words: NDArray[np.uint64], numbers: NDArray[np.integer], limit: int) -> NDArray[np.uint64]:
    """Put numbers below `limit` into the lowest bits of random words: in random order still, and no two equal."""
    bits = np.uint64((limit - 1).bit_length())
    words = words >> bits
    words <<= bits
    words |= numbers.astype(np.uint64)
    return words


class Draws(Protocol):
    """Random numbers one after the other, as `numpy.random.Generator` gives them."""

    def random(self, size: int) -> NDArray[np.float64]:
        """The next `size` numbers in [0, 1)."""
        ...


class KeyedDraws:
    """The numbers of one sample for one purpose, one after the other, for choices that depend on those before.

    Args:
        key: of the sample.
        purpose: what for.
        first: the first of the numbers, if they are known.
    """

    def __init__(self, key: np.uint64, purpose: Purpose, first: NDArray[np.float64] | None = None) -> None:
        self._keys = np.array([key], dtype=np.uint64)
        self._purpose = purpose
        self._first = np.empty(0) if first is None else first
        self._used = 0

    @classmethod
    def of_batch(cls, keys: NDArray[np.uint64], purpose: Purpose, ahead: int) -> list[KeyedDraws]:
        """The numbers of every sample of a batch; the first `ahead` of each are found here, all at once."""
        first = uniforms(keys[:, None], purpose, np.arange(ahead))
        return [cls(key, purpose, numbers) for key, numbers in zip(keys, first, strict=True)]

    def random(self, size: int) -> NDArray[np.float64]:
        """The next `size` numbers in [0, 1)."""
        begin, self._used = self._used, self._used + size
        if self._used <= self._first.size:
            return self._first[begin : self._used]
        return uniforms(self._keys, self._purpose, np.arange(begin, self._used))
