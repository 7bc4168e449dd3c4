"""Why a table of actions is no schedule: too little, too much, or in an order that never ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice

from ptm_dist.parallel.actions import Action, Kind, Orders, play

_FEW = 3


def table_problems(where: str, orders: Orders, ranks: int, stages: int, micro_batches: int) -> Iterator[str]:
    """What is wrong with a table, each with what to do; nothing if ranks can work by it.

    Args:
        where: the table's name, for the messages.
        orders: by rank, what it does in order; for as many micro-batches as the step has, or more.
        ranks: of the pipeline.
        stages: of the pipeline.
        micro_batches: of a step.
    """
    if len(orders) != ranks:
        yield (
            f"{where} has {len(orders)} rows, one for each pipeline rank, and layout.pipeline_parallel={ranks}; "
            "use a table with as many rows, or change that key"
        )
        return
    placement = list(_placement_problems(where, orders, stages))
    yield from placement
    if placement:
        return
    counted = 1 + max((action.micro for order in orders for action in order), default=-1)
    if counted < micro_batches:
        yield (
            f"{where} has {counted} micro-batches, a step of this recipe {micro_batches}; write a table for as many "
            "(or more), or raise layout.micro_batch_size"
        )
        return
    incomplete = _some(_count_problems(orders, stages, counted))
    if incomplete:
        yield f"{where}: {incomplete}; every micro-batch needs F and either B or I and W in every stage, once"
        return
    stuck = play(orders, stages, dict.fromkeys(Kind, 0.0)).stuck
    if stuck:
        present = {action for order in orders for action in order}
        waits = (
            f"row {rank + 1} stops at {action}, which needs {need if need in present else _whole(need)}"
            for rank, (action, need) in sorted(stuck.items())
        )
        yield (
            f"{where} never ends: {_some(waits)}; F comes after F of the stage before, B or I after F of the same "
            "stage and B or I of the next one, W after I"
        )


def _placement_problems(where: str, orders: Orders, stages: int) -> Iterator[str]:
    """Stages in two rows, ranks without a stage, and too many or too few stages."""
    rows: dict[int, set[int]] = defaultdict(set)
    for row, order in enumerate(orders, start=1):
        if not order:
            yield f"{where}: row {row} has no action; every pipeline rank needs a stage"
        for action in order:
            rows[action.stage].add(row)
    for stage, places in sorted(rows.items()):
        if len(places) > 1:
            listed = " and ".join(map(str, sorted(places)))
            yield f"{where} has stage {stage} in rows {listed}; a stage belongs to one rank"
    found = 1 + max(rows, default=-1)
    if all(orders) and found != stages:
        per_rank, rest = divmod(found, len(orders))
        change = f"use layout.pipeline_stages_per_rank={per_rank}" if per_rank and not rest else "use another table"
        yield (
            f"{where} has stages 0 to {found - 1}; layout.pipeline_parallel={len(orders)} and "
            f"layout.pipeline_stages_per_rank={stages // len(orders)} make {stages}: {change}"
        )


def _count_problems(orders: Orders, stages: int, micro_batches: int) -> Iterator[str]:
    """Actions that are missing, or there twice."""
    count = Counter(action for order in orders for action in order)
    places = ((stage, micro) for micro in range(micro_batches) for stage in range(stages))
    for stage, micro in places:
        kinds = [kind for kind in Kind for _ in range(count[Action(kind, stage, micro)])]
        if kinds not in ([Kind.FORWARD, Kind.BACKWARD], [Kind.FORWARD, Kind.INPUT, Kind.WEIGHT]):
            yield f"stage {stage} has {' '.join(kinds) or 'nothing'} for micro-batch {micro}"


def _whole(half: Action) -> Action:
    return half._replace(kind=Kind.BACKWARD)


def _some(problems: Iterator[str]) -> str:
    """The first few, in one line."""
    few = list(islice(problems, _FEW))
    return ", ".join(few) + (", and so on" if next(problems, None) else "")
