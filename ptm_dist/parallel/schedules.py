"""Pipeline schedules as tables: which rank computes which micro-batch in which stage, and in which order.

Built in any process, from numbers only; ranks need not talk to agree on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ptm_dist.errors import LayoutError
from ptm_dist.parallel.actions import Action, Kind, play
from ptm_dist.parallel.schedule_checks import table_problems
from ptm_dist.parallel.schedule_files import read_orders
from ptm_dist.parallel.schedule_orders import SINGLE, V_SHAPED, published_order
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import PipelineSchedule

__all__ = ["Action", "Kind", "Schedule", "build_schedule", "schedule_of", "schedule_problems"]


@dataclass(frozen=True)
class Schedule:
    """What every rank of a pipeline does in one step.

    Attributes:
        ranks: of the pipeline.
        stages: parts of the model, numbered in the order in which a sample passes them.
        micro_batches: of the step.
        rank_of: the rank that holds a stage, by stage.
        actions: what a rank does in order, by rank; each forward pass once, and each backward pass once, whole or in
            its two halves.
        splits_backward: whether there are backward passes in two halves.
    """

    ranks: int
    stages: int
    micro_batches: int
    rank_of: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    splits_backward: bool

    def messages(self, source: int, target: int, kind: Kind) -> tuple[Action, ...]:
        """The actions of a rank whose results another rank needs, in the order in which they are computed.

        Args:
            source: rank that computes them.
            target: another rank.
            kind: FORWARD for outputs that go to the next stage, BACKWARD for gradients that go to the one before.
        """
        forward = kind is Kind.FORWARD
        kinds, step = ({Kind.FORWARD}, 1) if forward else ({Kind.BACKWARD, Kind.INPUT}, -1)
        if source == target:
            return ()
        return tuple(
            action
            for action in self.actions[source]
            if action.kind in kinds
            and 0 <= action.stage + step < self.stages
            and self.rank_of[action.stage + step] == target
        )

    def in_flight(self, rank: int) -> dict[int, int]:
        """For each stage of a rank, the most micro-batches whose activations it holds at once.

        They are held from the forward pass to the end of the backward pass, its second half included.
        """
        held: Counter[int] = Counter()
        most: dict[int, int] = {stage: 0 for stage in range(self.stages) if self.rank_of[stage] == rank}
        for kind, stage, _ in self.actions[rank]:
            if kind is Kind.FORWARD:
                held[stage] += 1
                most[stage] = max(most[stage], held[stage])
            elif kind is not Kind.INPUT:
                held[stage] -= 1
        return most

    def bubble(self, forward: float = 1.0, backward: float = 2.0) -> float:
        """Share of the ranks' time in which they wait, if all stages cost the same and messages take no time.

        Args:
            forward: time of a forward pass through one stage, in any unit.
            backward: of a whole backward pass, in the same unit; each half takes half of it.
        """
        cost = {Kind.FORWARD: forward, Kind.BACKWARD: backward, Kind.INPUT: backward / 2, Kind.WEIGHT: backward / 2}
        work = sum(cost[action.kind] for order in self.actions for action in order)
        return 1.0 - work / (self.ranks * max(play(self.actions, self.stages, cost).ends))


def build_schedule(
    kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int, file: Path | None = None
) -> Schedule:
    """The table of a schedule.

    Args:
        kind: of the recipe's layout.
        ranks: of the pipeline.
        stages_per_rank: of its layout.
        micro_batches: of one step, at least 1.
        file: the table, with kind ``file``; one for more micro-batches serves without those too many.

    Raises: LayoutError if there is no such schedule; the message says what would work.
    """
    stages = ranks * stages_per_rank
    problems = list(_key_problems(kind, stages_per_rank, file))
    if problems:
        raise LayoutError("\n".join(problems))
    if file is None:
        where, orders = f"layout.pipeline_schedule={kind}", published_order(kind, ranks, stages_per_rank, micro_batches)
    else:
        where, orders = str(file), read_orders(file)
    problems = list(table_problems(where, orders, ranks, stages, micro_batches))
    if problems:
        raise LayoutError("\n".join(problems))
    rank_of = {action.stage: rank for rank, order in enumerate(orders) for action in order}
    actions = tuple(tuple(action for action in order if action.micro < micro_batches) for order in orders)
    return Schedule(
        ranks=ranks,
        stages=stages,
        micro_batches=micro_batches,
        rank_of=tuple(rank_of[stage] for stage in range(stages)),
        actions=actions,
        splits_backward=any(action.kind is Kind.INPUT for order in actions for action in order),
    )


@cache
def schedule_of(layout: ResolvedLayout, micro_batches: int) -> Schedule:
    """The table of a layout's steps with so many micro-batches; without a pipeline that of one rank in one stage.

    Raises: LayoutError if there is no such schedule.
    """
    return build_schedule(
        layout.pipeline_schedule,
        layout.pipeline_parallel,
        layout.stages_per_rank,
        micro_batches,
        layout.pipeline_schedule_file,
    )


def schedule_problems(
    kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int, file: Path | None = None
) -> Iterator[str]:
    """Why there is no such schedule, each with what works; arguments as for :func:`build_schedule`.

    Published schedules work for any number of ranks and micro-batches.
    """
    problems = list(_key_problems(kind, stages_per_rank, file))
    yield from problems
    if problems or file is None:
        return
    try:
        orders = read_orders(file)
    except LayoutError as error:
        yield str(error)
        return
    yield from table_problems(str(file), orders, ranks, ranks * stages_per_rank, micro_batches)


def _key_problems(kind: PipelineSchedule, stages_per_rank: int, file: Path | None) -> Iterator[str]:
    """Keys of the layout that do not suit each other, whatever the numbers of ranks and micro-batches."""
    needed = 1 if kind in SINGLE else 2 if kind in V_SHAPED else stages_per_rank
    if stages_per_rank != needed:
        others = f"{PipelineSchedule.INTERLEAVED_1F1B} or {PipelineSchedule.INTERLEAVED_ZERO_BUBBLE}"
        yield (
            f"layout.pipeline_stages_per_rank={stages_per_rank} does not suit layout.pipeline_schedule={kind}; use "
            f"{needed} (or leave it out), or layout.pipeline_schedule={others}"
        )
    if kind is PipelineSchedule.FILE and file is None:
        yield "layout.pipeline_schedule=file needs layout.pipeline_schedule_file; name a file, or another schedule"
    if kind is not PipelineSchedule.FILE and file is not None:
        yield (
            f"layout.pipeline_schedule_file={file} has no effect with layout.pipeline_schedule={kind}; leave it out, "
            "or use layout.pipeline_schedule=file"
        )
