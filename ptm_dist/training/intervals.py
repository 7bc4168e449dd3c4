"""How often to save: often costs the time of saving, seldom the steps that a failure undoes."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SAVES_TO_MEASURE = 2


@dataclass(frozen=True)
class SaveInterval:
    """The time between checkpoints that loses least.

    Attributes:
        save_seconds: for which the steps wait for a save, measured.
        hours_between_failures: as the recipe says.
        seconds: between saves.
        steps: the same in steps of the measured time, at least 1.
    """

    save_seconds: float
    hours_between_failures: float
    seconds: float
    steps: int

    def in_words(self) -> str:
        """A line for who watches the run."""
        return (
            f"steps wait {self.save_seconds:.2f} s for a save; with a failure every {self.hours_between_failures:g} "
            f"hours, least time is lost by saving every {self.seconds / 60:.1f} minutes: checkpoint.every={self.steps}"
        )


def young_interval(save_seconds: float, seconds_between_failures: float) -> float:
    """Seconds between saves that lose least time: sqrt(2 x save x time between failures).

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval"; Daly 2006 has more terms,
    which matter where a save takes a good part of the time between failures.
    """
    return math.sqrt(2.0 * save_seconds * seconds_between_failures)


class IntervalAdvice:
    """Measures steps and saves, and says once how often to save.

    Args:
        hours_between_failures: None: nothing is said.
    """

    def __init__(self, hours_between_failures: float | None) -> None:
        self._hours = hours_between_failures
        self._steps: list[float] = []
        self._saves: list[float] = []

    def add_step(self, seconds: float) -> None:
        """Take in a step; only those before the advice are kept."""
        if self._hours is not None and len(self._saves) < _SAVES_TO_MEASURE:
            self._steps.append(seconds)

    def after_save(self, seconds: float) -> SaveInterval | None:
        """Take in a save; the advice after the second one."""
        self._saves = [*self._saves[:_SAVES_TO_MEASURE], seconds]
        if self._hours is None or len(self._saves) != _SAVES_TO_MEASURE:
            return None
        save = sum(self._saves) / len(self._saves)
        between = young_interval(save, 3600.0 * self._hours)
        # The first step builds and compiles; the middle one is usual.
        step = sorted(self._steps)[len(self._steps) // 2]
        return SaveInterval(save, self._hours, between, max(1, round(between / step)))
