"""Whether a layout can compute a recipe on a number of processes: arithmetic, before any of them exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptm_dist.parallel.schedules import schedule_problems
from ptm_dist.parallel.stages import split_problems
from ptm_dist.recipe.layout import layout_problems, model_parallel_size, resolve_layout, stages_per_rank
from ptm_dist.recipe.schema import LayoutSection, PipelineSchedule, Recipe, Recompute

_WITHOUT_EFFECT: dict[str, dict[str, tuple[Any, ...]]] = {
    "pipeline_parallel": {
        "pipeline_schedule": (PipelineSchedule.ONE_F_ONE_B,),
        "pipeline_stages_per_rank": (None, 1),
        "pipeline_split": (None, ()),
        "pipeline_schedule_file": (None,),
    },
    "context_parallel": {"context_method": ("ring",)},
    "tensor_parallel": {"sequence_parallel": (False,)},
}
"""Keys that say how ranks share something, and the values that they may have where nobody shares it."""


def fit_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    """Why a layout cannot compute a recipe, each with what to use instead.

    Args:
        recipe: what is learnt, and by which engine; its own layout is not looked at.
        layout: where.
        world_size: processes of the run.
    """
    sizes = list(layout_problems(layout, world_size))
    yield from sizes
    yield from _keys_without_effect(layout)
    yield from _length_problems(recipe, layout)
    if world_size % model_parallel_size(layout) == 0:
        yield from _sample_problems(recipe, layout, world_size)
    if layout.pipeline_parallel > 1:
        stages = layout.pipeline_parallel * stages_per_rank(layout)
        yield from split_problems(recipe.model.num_layers, stages, layout.pipeline_split)
        if not sizes:
            yield from _schedule_problems(recipe, layout, world_size)
    yield from _engine_problems(recipe, layout, world_size)


def shown(value: Any) -> str:
    """A value of a recipe as it is written behind `key=`."""
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    return f"[{','.join(map(shown, value))}]" if isinstance(value, tuple) else str(value)


def _keys_without_effect(layout: LayoutSection) -> Iterator[str]:
    for size, keys in _WITHOUT_EFFECT.items():
        if getattr(layout, size) > 1:
            continue
        for key, neutral in keys.items():
            if (value := getattr(layout, key)) not in neutral:
                yield (
                    f"layout.{key}={shown(value)} has no effect with layout.{size}=1; leave it out, or use "
                    f"layout.{size}=2 or more"
                )
    if layout.recompute is Recompute.NONE and layout.recompute_every > 1:
        yield (
            f"layout.recompute_every={layout.recompute_every} has no effect with layout.recompute=none; leave it out, "
            "or use layout.recompute=full or selective"
        )


def _length_problems(recipe: Recipe, layout: LayoutSection) -> Iterator[str]:
    phases = enumerate(recipe.training.phases)
    lengths = {f"training.phases[{number}].sequence_length": phase.sequence_length for number, phase in phases}
    for key, length in {**lengths, "data.sequence_length": recipe.data.sequence_length}.items():
        if layout.context_parallel > length:
            yield (
                f"layout.context_parallel={layout.context_parallel} leaves ranks without a position of {key}={length}; "
                f"use layout.context_parallel={length} or less"
            )


def _sample_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    """Batches too small for the data-parallel ranks; the start of a batch ramp may be, it does not last."""
    data_parallel = world_size // model_parallel_size(layout)
    phases = enumerate(recipe.training.phases)
    sizes = {f"training.phases[{number}].global_batch_size": phase.global_batch_size for number, phase in phases}
    for key, size in {**sizes, "training.global_batch_size": recipe.training.global_batch_size}.items():
        if size is not None and size < data_parallel:
            yield (
                f"{key}={size} gives some of the {data_parallel} data-parallel ranks no sample; start fewer "
                "processes, raise layout.tensor_parallel, layout.pipeline_parallel or layout.context_parallel, or "
                "raise the batch size"
            )


def _schedule_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    yield from schedule_problems(
        layout.pipeline_schedule,
        layout.pipeline_parallel,
        stages_per_rank(layout),
        _most_micro_batches(recipe, layout, world_size),
        layout.pipeline_schedule_file,
    )


def _most_micro_batches(recipe: Recipe, layout: LayoutSection, world_size: int) -> int:
    """Of the steps of the whole run: a schedule for so many serves steps with fewer, such as those of a ramp."""
    resolved, training, length = resolve_layout(layout, world_size), recipe.training, recipe.data.sequence_length
    steps = [(1, training.global_batch_size)]
    for phase in training.phases:
        steps.append((length // phase.sequence_length, phase.global_batch_size or training.global_batch_size))
    return max(resolved.micro_batches(size, times_shorter)[0] for times_shorter, size in steps)


def _engine_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    if recipe.engine == "deepspeed":
        from ptm_dist.engines.deepspeed_config import deepspeed_problems

        yield from deepspeed_problems(recipe, layout, world_size)
    elif recipe.engine == "megatron":
        from ptm_dist.engines.megatron_config import megatron_problems

        yield from megatron_problems(recipe, layout, world_size)
