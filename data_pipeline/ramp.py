"""Batch sizes by arithmetic: the samples of a step, of all steps before it, and of each rank."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class _Level(NamedTuple):
    """The stretch of steps that have one batch size."""

    first_step: int
    first_sample: int
    size: int


@dataclass(frozen=True)
class BatchSizes:
    """A batch size for every step: constant, or growing in equal stages over the first samples of a run.

    A ramp passes through n = ceil((final - start) / increment) growths. While the samples read so far lie in
    [k/n, (k+1)/n) of `ramp_samples`, steps have start + k * increment samples; afterwards, `final`. A size is
    chosen at the start of a step, so a stage may end up to one batch late; the samples themselves are counted
    exactly.

    Attributes:
        final: samples of a step after the ramp.
        start: samples of the first step; None for a constant size.
        increment: samples by which a step grows at a time; the last growth may be smaller.
        ramp_samples: samples over which steps grow from `start` to `final`.

    Raises:
        ValueError: sizes that are not positive, that shrink, or half of a ramp.

    Source: GPT-3 (arXiv 2005.14165), section 2.3 and appendix B.
    """

    final: int
    start: int | None = None
    increment: int | None = None
    ramp_samples: int = 0

    def __post_init__(self) -> None:
        if (self.start is None) != (self.increment is None) or (self.start is None and self.ramp_samples):
            raise ValueError("a ramp needs a first size, an increment and the samples over which it grows")
        first = self.final if self.start is None else self.start
        if not 1 <= first <= self.final or self.ramp_samples < 0 or (self.increment is not None and self.increment < 1):
            raise ValueError(f"a ramp from {first} to {self.final} samples by {self.increment}")

    def size(self, step: int) -> int:
        """Samples of a step over all ranks; steps count from 0."""
        return self._level(step).size

    def first_sample(self, step: int) -> int:
        """Samples of all steps before `step`."""
        level = self._level(step)
        return level.first_sample + (step - level.first_step) * level.size

    def counters(self, step: int, dp_rank: int, dp_size: int) -> tuple[int, int]:
        """The counters [begin, end) of the samples that rank `dp_rank` of `dp_size` reads in a step."""
        first = self.first_sample(step)
        begin, end = slice_of(self.size(step), dp_rank, dp_size)
        return first + begin, first + end

    def _level(self, step: int) -> _Level:
        if step < 0:
            raise ValueError(f"step {step}")
        return self._levels[bisect_right(self._levels, step, key=lambda level: level.first_step) - 1]

    @cached_property
    def _levels(self) -> list[_Level]:
        levels = []
        step = consumed = 0
        for growths, size in enumerate(self._growing_sizes()):
            # The stage ends with the first step at which consumed / ramp_samples >= (growths + 1) / stages.
            stages = self._stages
            steps = max(0, -(-((growths + 1) * self.ramp_samples - consumed * stages) // (size * stages)))
            if steps:
                levels.append(_Level(step, consumed, size))
            step += steps
            consumed += steps * size
        return [*levels, _Level(step, consumed, self.final)]

    def _growing_sizes(self) -> range:
        if self.start is None or self.increment is None:
            return range(0)
        return range(self.start, self.final, self.increment)

    @property
    def _stages(self) -> int:
        return len(self._growing_sizes())


def slice_of(global_batch_size: int, dp_rank: int, dp_size: int) -> tuple[int, int]:
    """Rows [begin, end) of a global batch that rank `dp_rank` of `dp_size` reads.

    The slices follow each other in rank order, cover the batch, and differ in length by at most one;
    with more ranks than samples some are empty.

    Raises:
        ValueError: the rank is not one of `dp_size`, or the batch has a negative size.
    """
    if global_batch_size < 0:
        raise ValueError(f"a batch of {global_batch_size} samples")
    if not 0 <= dp_rank < dp_size:
        raise ValueError(f"dp_rank {dp_rank} is outside [0, {dp_size})")
    return global_batch_size * dp_rank // dp_size, global_batch_size * (dp_rank + 1) // dp_size
