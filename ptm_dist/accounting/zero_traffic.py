"""When weights are gathered and gradients reduced in a step: the schedule, walked through with ZeRO's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ptm_dist.accounting.holdings import Shapes, StageHoldings, padded, zero_ranks
from ptm_dist.accounting.watch import Collective, Traffic
from ptm_dist.parallel.actions import Kind
from ptm_dist.parallel.replicas import bucket_counts
from ptm_dist.parallel.schedules import Schedule
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision
from ptm_dist.training.activations import COMPUTE_BYTES, MASTER_BYTES


@dataclass(frozen=True)
class ZeroTraffic:
    """Data parallelism of one rank.

    Attributes:
        layout: how the model is shared.
        precision: of the run; gradients are reduced in the master format.
        schedule: of the step.
        splits: whether a stage's backward pass comes in two halves where the schedule has them.
    """

    layout: ResolvedLayout
    precision: Precision
    schedule: Schedule
    splits: Callable[[StageHoldings], bool]

    def of(self, stages: Iterable[StageHoldings]) -> Traffic:
        """All stages of a rank."""
        total = Traffic()
        shards, copies = zero_ranks(self.layout)
        for stage in stages:
            if shards == 1 and self.layout.offload != "parameters":
                self._include_buckets(total, stage, copies)
                continue
            gathers, reductions = self._walk(stage)
            for group in stage.groups:
                self._include(total, group, gathers if shards > 1 else 0, reductions if shards > 1 else 0, copies)
        return total

    def _include_buckets(self, total: Traffic, stage: StageHoldings, copies: int) -> None:
        """Whole state on every rank: gradients are summed in buckets, the module's last ones first."""
        master = MASTER_BYTES[self.precision]
        sizes = [math.prod(shape) * master for shape in reversed(stage.in_order().values())]
        for count in bucket_counts(sizes):
            total.add(Collective.ALL_REDUCE, sum(sizes[:count]), int(copies > 1))
            sizes = sizes[count:]

    def _include(self, total: Traffic, group: Shapes, gathers: int, reductions: int, copies: int) -> None:
        shards, _ = zero_ranks(self.layout)
        count = sum(padded(shape, shards) for shape in group.values())
        if not count:
            return
        total.add(Collective.ALL_GATHER, count * COMPUTE_BYTES[self.precision], gathers)
        reduced = count * MASTER_BYTES[self.precision]
        total.add(Collective.REDUCE_SCATTER, reduced, reductions)
        total.add(Collective.ALL_REDUCE, reduced // shards, int(copies > 1))

    def _walk(self, stage: StageHoldings) -> tuple[int, int]:
        """How often each group of a stage is gathered and reduced.

        Stage 3 gives weights up after each pass, other stages after the last backward pass. The first half of a
        backward pass keeps them for the second one; the first stage, which has nobody to send to, leaves all to the
        second half.
        """
        always = self.layout.zero_stage == 3
        left, gathers, is_whole = self.schedule.micro_batches, 0, False
        for kind, number, _ in self.schedule.actions[self.schedule.rank_of[stage.number]]:
            if number != stage.number or not self._computes(kind, stage):
                continue
            gathers += not is_whole
            completes = kind is not Kind.FORWARD and not (kind is Kind.INPUT and self.splits(stage))
            left -= completes
            is_whole = not (always or left == 0) or not (completes or kind is Kind.FORWARD)
        return gathers, self.schedule.micro_batches if self.layout.zero_stage >= 2 else 1

    def _computes(self, kind: Kind, stage: StageHoldings) -> bool:
        """Whether something happens: halves that cannot be told apart are one."""
        if kind is Kind.WEIGHT:
            return self.splits(stage)
        return not (kind is Kind.INPUT and self.splits(stage) and stage.part.first == 0)
