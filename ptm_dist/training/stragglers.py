"""Which rank is slow, by how much, and since when.

Ranks that wait for each other in every step all take the same time for it: the slow one cannot be seen in the times
of steps. So each rank now and then times a computation of its own (:mod:`ptm_dist.training.pulse`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median_low
from typing import NamedTuple

import torch

from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import HealthSection
from ptm_dist.training.journal import Journal
from ptm_dist.training.metrics import Row
from ptm_dist.training.pulse import Pulse
from ptm_dist.training.trainer import StepRecord

_IN_A_ROW = 3
"""Measurements that agree before a rank is called a straggler, or no longer one."""


class Measurement(NamedTuple):
    """Of one rank."""

    node: str
    pulse: float
    """Seconds of the computation that is the same everywhere."""
    waited: float
    """Seconds that it has waited for data since the last measurement."""


class Stragglers:
    """Measures every rank now and then, and names those that stay behind.

    Args:
        section: how often, and what is late.
        device: of this process.
        node: of this process.
        control: all ranks.
        journal: told who is late, and who no longer is.
    """

    def __init__(
        self, section: HealthSection, device: torch.device, node: str, control: ControlGroup, journal: Journal
    ) -> None:
        self._every = section.pulse_seconds if control.size > 1 else 0.0
        self._node = node
        self._control = control
        self._journal = journal
        self._pulse = Pulse(device) if self._every else None
        self._lateness = Lateness(control.size, section.straggler_ratio)
        self._waited = 0.0
        self._last = time.perf_counter()

    def add(self, record: StepRecord) -> None:
        """Take in one step."""
        self._waited += record.data_wait_seconds

    def take(self, step: int) -> Row:
        """Measure if it is time; collective.

        Returns: for a row: `slowest_rank`, `slowest_ratio` (its time over the median rank's), `pulse_seconds` (the
            median), `data_wait_rank`; nothing if it is not time.
        """
        if self._pulse is None:
            return {}
        (since,) = self._control.maxima(time.perf_counter() - self._last)
        if since < self._every:
            return {}
        ranks = self._control.gather(Measurement(self._node, self._pulse.seconds(), self._waited))
        self._waited, self._last = 0.0, time.perf_counter()
        middle = median_low(rank.pulse for rank in ranks)
        ratios = [rank.pulse / middle for rank in ranks]
        self._tell(step, ranks, ratios)
        slowest = max(range(len(ranks)), key=ratios.__getitem__)
        waiting = max(range(len(ranks)), key=lambda rank: ranks[rank].waited)
        return {
            "slowest_rank": slowest,
            "slowest_ratio": ratios[slowest],
            "pulse_seconds": middle,
            "data_wait_rank": waiting,
        }

    def _tell(self, step: int, ranks: Sequence[Measurement], ratios: Sequence[float]) -> None:
        for rank in self._lateness.changes(ratios):
            node, ratio = ranks[rank].node, ratios[rank]
            kind = "straggler" if rank in self._lateness.late else "straggler_recovered"
            self._journal.event(kind, step=step, rank=rank, node=node, ratio=ratio, pulse_seconds=ranks[rank].pulse)
            if rank in self._lateness.late:
                self._journal.say(f"WARNING: rank {rank} on {node} computes {ratio:.1f} times slower than the median")
            else:
                self._journal.say(f"rank {rank} on {node} is no longer slow")


class Lateness:
    """Who is late: whoever was in several measurements one after the other, until it was not in as many.

    Args:
        ranks: number of them.
        limit: ratio to the median from which on one is late.

    Attributes:
        late: ranks that are.
    """

    def __init__(self, ranks: int, limit: float) -> None:
        self._limit = limit
        self._streaks = [0] * ranks
        self.late: set[int] = set()

    def changes(self, ratios: Sequence[float]) -> list[int]:
        """Take in a measurement of all ranks; those that are late, or no longer, since this one."""
        changed = []
        for rank, ratio in enumerate(ratios):
            differs = (ratio >= self._limit) != (rank in self.late)
            self._streaks[rank] = self._streaks[rank] + 1 if differs else 0
            if self._streaks[rank] == _IN_A_ROW:
                self._streaks[rank] = 0
                self.late ^= {rank}
                changed.append(rank)
        return changed
