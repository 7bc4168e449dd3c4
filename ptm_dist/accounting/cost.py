"""What a step costs each pipeline rank: by formula for all of them, and by simulation for one."""

from __future__ import annotations

from dataclasses import dataclass

from ptm_dist.accounting.closed_form import StepPlan, step_traffic
from ptm_dist.accounting.holdings import Place, count_parameters
from ptm_dist.accounting.simulate import Task, simulate
from ptm_dist.accounting.watch import Traffic
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.memory import MemoryEstimate, rank_memory

_SHALLOW = (2, 4)
"""Layers of each stage in the two simulations from which deeper models are extrapolated."""


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind and purpose in a step.

    Attributes:
        purpose: what they are for.
        kind: of collective.
        calls: how many.
        bytes: of their tensors, all calls together; see :class:`ptm_dist.accounting.watch.Traffic`.
    """

    purpose: str
    kind: str
    calls: int
    bytes: int


@dataclass(frozen=True)
class RankCost:
    """One pipeline rank; of the ranks at its place those that hold most.

    Attributes:
        pipeline_rank: its number.
        layers: first layer, and the layer behind the last, of each of its stages.
        parameters: of its stages, before tensor parallelism and ZeRO share them.
        memory: in the steps that need most.
        exchanges: of a step with the full batch.
    """

    pipeline_rank: int
    layers: tuple[tuple[int, int], ...]
    parameters: int
    memory: MemoryEstimate
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class StepCost:
    """A step with the full batch of the last phase, on the native engine.

    Attributes:
        micro_batches: on each rank.
        bubble: share of the time in which pipeline ranks wait for each other, at best.
        ranks: of the pipeline.
    """

    micro_batches: int
    bubble: float
    ranks: tuple[RankCost, ...]


@dataclass(frozen=True)
class SimulatedCost:
    """A rank on fake tensors beside the formulas, for a step of fewer micro-batches.

    Attributes:
        rank: of the world.
        layers: of each stage in the simulations; the figures are extrapolated from them if there are two.
        micro_batches: of the step.
        peak: bytes of live tensors at their most.
        estimated_peak: the same by formula.
        calls: collectives.
        estimated_calls: the same by formula.
        bytes: of their tensors.
        estimated_bytes: the same by formula.
    """

    rank: int
    layers: tuple[int, ...]
    micro_batches: int
    peak: int
    estimated_peak: int
    calls: int
    estimated_calls: int
    bytes: int
    estimated_bytes: int


def step_cost(recipe: Recipe, layout: ResolvedLayout) -> StepCost:
    """By formula, in no time; allocates nothing."""
    schedule = StepPlan(recipe, layout, Place()).schedule
    ranks = tuple(_rank_cost(recipe, layout, rank) for rank in range(layout.pipeline_parallel))
    return StepCost(schedule.micro_batches, schedule.bubble(), ranks)


def simulated_cost(recipe: Recipe, layout: ResolvedLayout) -> SimulatedCost:
    """Simulate the first rank of the fullest place in the pipeline, and work out the same step by formula.

    Deep models are simulated with two and four layers in each stage: beyond that, cost is linear in layers.

    Args:
        recipe: of the run.
        layout: how it is shared.
    """
    fullest = max(range(layout.pipeline_parallel), key=lambda rank: rank_memory(recipe, layout, rank).total)
    rank = fullest * (layout.world_size // layout.pipeline_parallel)
    brief = _brief(recipe, layout)
    brief_layout = resolve_layout(brief.layout, layout.world_size)
    plan = StepPlan(brief, brief_layout, Place(pipeline=fullest))
    layers = sum(stage.part.end - stage.part.first for stage in plan.stages)
    depths = _SHALLOW if recipe.model.num_layers > max(_SHALLOW) * layout.num_stages else ()
    recipes = [_shallow(brief, layout, depth) for depth in depths] or [brief]
    found = simulate([Task(each, layout.world_size, rank) for each in recipes])
    peaks = [each.peak for each in found]
    calls = [each.traffic.calls.total() for each in found]
    sizes = [each.traffic.bytes.total() for each in found]
    near, far = (depth * layout.stages_per_rank for depth in _SHALLOW)
    times = (layers - near) / (far - near)
    total = Traffic()
    for part in step_traffic(brief, brief_layout, plan.place).values():
        total.include(part)
    return SimulatedCost(
        rank=rank,
        layers=depths or (layers // layout.stages_per_rank,),
        micro_batches=plan.micro_batches,
        peak=_extend(peaks, times),
        estimated_peak=rank_memory(brief, brief_layout, fullest).total,
        calls=_extend(calls, times),
        estimated_calls=total.calls.total(),
        bytes=_extend(sizes, times),
        estimated_bytes=total.bytes.total(),
    )


def _rank_cost(recipe: Recipe, layout: ResolvedLayout, rank: int) -> RankCost:
    plan = StepPlan(recipe, layout, Place(pipeline=rank))
    return RankCost(
        pipeline_rank=rank,
        layers=tuple((stage.part.first, stage.part.end) for stage in plan.stages),
        parameters=sum(count_parameters(recipe.model, stage.part) for stage in plan.stages),
        memory=rank_memory(recipe, layout, rank),
        exchanges=tuple(
            Exchange(purpose.value, kind.value, calls, traffic.bytes[kind])
            for purpose, traffic in step_traffic(recipe, layout, plan.place).items()
            for kind, calls in traffic.calls.items()
        ),
    )


def _brief(recipe: Recipe, layout: ResolvedLayout) -> Recipe:
    """The recipe's last phase with as many micro-batches as fill the pipeline twice, and no more."""
    last = phases(recipe)[-1]
    count, samples = layout.micro_batches(last.sizes.final)
    size = min(count, 2 * layout.num_stages) * samples * layout.data_parallel
    training = {"global_batch_size": min(size, last.sizes.final), "batch_ramp": None, "phases": ()}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def _shallow(recipe: Recipe, layout: ResolvedLayout, depth: int) -> Recipe:
    """The recipe with so many layers in each stage."""
    layers = depth * layout.num_stages
    split = tuple(range(depth, layers, depth)) if layout.pipeline_parallel > 1 else None
    model = {"num_layers": layers, "layer_groups": None}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "layout": recipe.layout.model_copy(update={"pipeline_split": split}),
        }
    )


def _extend(figures: list[int], times: float) -> int:
    """From one figure or from two, so many times their difference beyond the first."""
    return round(figures[0] + (figures[-1] - figures[0]) * times)
