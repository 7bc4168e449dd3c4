"""The order of every published schedule, by rank; those that torch has come from torch.

GPipe and 1F1B are a few lines of arithmetic; the others are built by ``torch.distributed.pipelining``, which needs
stages only to count them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from ptm_dist.parallel.actions import Action, Kind
from ptm_dist.recipe.schema import PipelineSchedule

SINGLE = frozenset({PipelineSchedule.GPIPE, PipelineSchedule.ONE_F_ONE_B})
"""Schedules with one stage per rank."""
V_SHAPED = frozenset({PipelineSchedule.ZBV_ZERO_BUBBLE, PipelineSchedule.DUALPIPEV})
"""Schedules with two stages per rank, the second ones in reverse order."""

_TORCH_CLASSES = {
    PipelineSchedule.LOOPED_BFS: "ScheduleLoopedBFS",
    PipelineSchedule.INTERLEAVED_1F1B: "ScheduleInterleaved1F1B",
    PipelineSchedule.INTERLEAVED_ZERO_BUBBLE: "ScheduleInterleavedZeroBubble",
    PipelineSchedule.ZBV_ZERO_BUBBLE: "ScheduleZBVZeroBubble",
    PipelineSchedule.DUALPIPEV: "ScheduleDualPipeV",
}


def published_order(
    kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int
) -> list[tuple[Action, ...]]:
    """What each rank does in order, by rank.

    Where a schedule is published for some numbers of micro-batches only, the order is that of the next larger one
    without the micro-batches too many: what is left waits for nothing that was left out.

    Args:
        kind: any but ``file``.
        ranks: of the pipeline.
        stages_per_rank: 1 for gpipe and 1f1b, 2 for V-shaped schedules.
        micro_batches: of one step, at least 1.
    """
    if kind is PipelineSchedule.GPIPE:
        return [tuple(_one_f_one_b(rank, micro_batches, micro_batches)) for rank in range(ranks)]
    if kind is PipelineSchedule.ONE_F_ONE_B:
        return [tuple(_one_f_one_b(rank, ranks - rank, micro_batches)) for rank in range(ranks)]
    count = micro_batches
    while not _is_published(kind, ranks, count):
        count += 1
    return [
        tuple(action for action in order if action.micro < micro_batches)
        for order in _torch_order(kind, ranks, stages_per_rank, count)
    ]


def _one_f_one_b(stage: int, in_flight: int, micro_batches: int) -> Iterator[Action]:
    """Forward passes until so many micro-batches are in flight, then a backward pass before each further one."""
    warm_up = min(in_flight, micro_batches)
    for micro in range(micro_batches + warm_up):
        if micro >= warm_up:
            yield Action(Kind.BACKWARD, stage, micro - warm_up)
        if micro < micro_batches:
            yield Action(Kind.FORWARD, stage, micro)


def _is_published(kind: PipelineSchedule, ranks: int, micro_batches: int) -> bool:
    """Whether torch has this order for this number of micro-batches."""
    if kind in {PipelineSchedule.INTERLEAVED_1F1B, PipelineSchedule.INTERLEAVED_ZERO_BUBBLE}:
        rounds = max(1, micro_batches // ranks)
        return micro_batches % rounds == 0
    return kind is not PipelineSchedule.DUALPIPEV or micro_batches >= 2 * ranks


def _torch_order(kind: PipelineSchedule, ranks: int, stages_per_rank: int, micro_batches: int) -> list[list[Action]]:
    """The compute actions of torch's schedule of this name."""
    from torch.distributed.pipelining import schedules

    stages = [
        SimpleNamespace(
            group_rank=0, group_size=ranks, num_stages=ranks * stages_per_rank, stage_index=index, submod=None
        )
        for index in range(stages_per_rank)
    ]
    published = getattr(schedules, _TORCH_CLASSES[kind])
    # Torch's constructors go on to plan messages for torch's own runner, which takes far longer than the order.
    only_ordered = type(published.__name__, (published,), {"_prepare_schedule_with_comms": lambda *_: None})
    schedule = only_ordered(stages, micro_batches)
    return [list(_compute_actions(schedule.pipeline_order[rank])) for rank in range(ranks)]


def _compute_actions(order: Iterable[Any]) -> Iterator[Action]:
    """Torch's actions as ours, the two of an overlapped pair one after the other, gaps left out."""
    for action in order:
        if action is None:
            continue
        for single in action.sub_actions or (action,):
            yield Action(Kind(single.computation_type.value), single.stage_index, single.microbatch_index)
