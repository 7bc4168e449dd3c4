"""Several sources in fixed proportions, by arithmetic: counter -> source, and how often it was read before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm

import numpy as np
from numpy.typing import NDArray

MAX_CYCLE = 1_000_000
"""Samples after which proportions repeat, at most; a table of this many places is kept."""


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in the proportions of some decimal numbers: 0.7, 0.2 and 0.1 are 7, 2 and 1.

    Raises:
        ValueError: a negative weight, none above 0, or proportions so fine that they repeat after more than
            :data:`MAX_CYCLE` samples only.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    if any(fraction < 0 for fraction in fractions) or not any(fractions):
        raise ValueError(f"weights {list(weights)} must not be negative, and one must be above 0")
    scale = lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * scale) for fraction in fractions]
    divisor = int(np.gcd.reduce(integers))
    integers = [integer // divisor for integer in integers]
    if sum(integers) > MAX_CYCLE:
        raise ValueError(f"weights {list(weights)} repeat after {sum(integers)} samples; round them to fewer digits")
    return tuple(integers)


@dataclass(frozen=True)
class _Cycle:
    """The sources of one cycle of `size` samples: each of weight w is spread evenly over w of its places."""

    weights: NDArray[np.int64]
    sources: NDArray[np.int64]
    earlier: NDArray[np.int64]
    """How many places before each have the same source."""

    @classmethod
    def of(cls, weights: Sequence[int]) -> _Cycle:
        sources = np.repeat(np.arange(len(weights)), weights)
        turns = np.concatenate([np.arange(weight) for weight in weights])
        due = (2 * turns + 1) / (2 * np.repeat(np.array(weights), weights))
        order = np.lexsort((sources, due))
        return cls(np.array(weights, dtype=np.int64), sources[order], turns[order])

    @property
    def size(self) -> int:
        return self.sources.size

    def picked(self, places: int) -> NDArray[np.int64]:
        """How often each source stands in the first `places` places of endless cycles."""
        cycles, rest = divmod(places, self.size)
        return cycles * self.weights + np.bincount(self.sources[:rest], minlength=self.weights.size)


class Mixture:
    """Which of several sources each counter reads.

    Args:
        levels: from which counter on which weights hold, ascending, the first from 0; as many weights in each as
            there are sources. A change neither skips nor repeats a sample of any source.

    Raises:
        ValueError: levels that are not ascending from 0, or of different numbers of sources.
    """

    def __init__(self, levels: Sequence[tuple[int, Sequence[int]]]) -> None:
        starts = [start for start, _ in levels]
        if not levels or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"weights from the counters {starts}; the first is 0 and each is larger than the last")
        if len({len(weights) for _, weights in levels}) != 1:
            raise ValueError("each level needs one weight for each source")
        self._starts = starts
        self._cycles = [_Cycle.of(weights) for _, weights in levels]
        self._before = [np.zeros(len(levels[0][1]), dtype=np.int64)]
        for number, (begin, end) in enumerate(pairwise(starts)):
            self._before.append(self._before[-1] + self._cycles[number].picked(end - begin))

    @property
    def num_sources(self) -> int:
        """Sources that are mixed."""
        return self._before[0].size

    def picked(self, counter: int) -> NDArray[np.int64]:
        """How many samples of each source the counters [0, counter) read, [sources], int64."""
        level = self._level(counter)
        return self._before[level] + self._cycles[level].picked(counter - self._starts[level])

    def picks(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of the counters [begin, end), and how often each was read before, both [end - begin], int64.

        Raises:
            ValueError: not 0 <= begin <= end.
        """
        if not 0 <= begin <= end:
            raise ValueError(f"counters [{begin}, {end})")
        sources, turns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        while begin < end:
            level = self._level(begin)
            last = min(end, self._starts[level + 1]) if level + 1 < len(self._starts) else end
            cycle = self._cycles[level]
            counters = np.arange(begin, last, dtype=np.int64) - self._starts[level]
            cycles, places = counters // cycle.size, counters % cycle.size
            found = cycle.sources[places]
            sources.append(found)
            turns.append(self._before[level][found] + cycles * cycle.weights[found] + cycle.earlier[places])
            begin = last
        return np.concatenate(sources), np.concatenate(turns)

    def _level(self, counter: int) -> int:
        return bisect_right(self._starts, counter) - 1
