"""Which steps of a run leave the weights as they are: the one thing that a run is a function of beside its recipe."""

from __future__ import annotations

from collections.abc import Iterable

StepRange = tuple[int, int]
"""First and last step."""


class Skips:
    """Steps whose batch is consumed and whose update is left out, one range for each decision.

    Args:
        ranges: those that are known, in the order in which they were decided.
    """

    def __init__(self, ranges: Iterable[StepRange] = ()) -> None:
        self._ranges = list(ranges)

    @property
    def ranges(self) -> tuple[StepRange, ...]:
        """All decisions, in their order."""
        return tuple(self._ranges)

    def add(self, first: int, last: int) -> None:
        """Leave out the updates of a range of steps; nothing new if it is known."""
        if (first, last) not in self._ranges:
            self._ranges.append((first, last))

    def covers(self, step: int) -> bool:
        """Whether the update of a step is left out."""
        return any(first <= step <= last for first, last in self._ranges)

    def decisions_after(self, step: int) -> int:
        """How many ranges end behind a step."""
        return sum(last > step for _, last in self._ranges)

    def first_of_newest(self, updates: int, step: int) -> int:
        """The first of so many steps that end with `step`, not counting those that are left out already."""
        remaining = updates
        while step > 1:
            remaining -= not self.covers(step)
            if remaining == 0:
                break
            step -= 1
        return step
