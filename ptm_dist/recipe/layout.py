"""The layout of a world of known size: how many ranks replicate, shard and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Literal

from ptm_dist.errors import LayoutError
from ptm_dist.recipe.schema import LayoutSection, PipelineSchedule, Recompute

_FEW = 6


@dataclass(frozen=True)
class ResolvedLayout:
    """A layout without `auto`: world_size = pipeline_parallel * data_parallel * context_parallel * tensor_parallel.

    Data parallelism is replicate * shard.

    Attributes:
        world_size: processes of the run.
        data_parallel: ranks that read different samples.
        replicate: copies of the (sharded) state among the data-parallel ranks.
        shard: data-parallel ranks that share one copy of the state by ZeRO.
        zero_stage: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters are shared.
        tensor_parallel: ranks that share each layer's matrices.
        sequence_parallel: activations outside the matrices are split over the tensor-parallel ranks.
        pipeline_parallel: ranks that hold different layers.
        pipeline_schedule: order of micro-batches in a pipeline.
        stages_per_rank: stages on each pipeline rank.
        pipeline_split: first layer of every stage but the first; None: stages of about equal cost.
        pipeline_schedule_file: the order, with pipeline_schedule=file.
        context_parallel: ranks that share each sequence.
        context_method: how they attend to each other's positions.
        micro_batch_size: samples per forward pass of one data-parallel rank.
        recompute: activation checkpointing.
        recompute_every: of every n-th layer only.
        offload: what lies in host memory between its uses.
        offload_activations: what blocks store for the backward pass lies there too.
        compile: torch.compile of every block.
    """

    world_size: int
    data_parallel: int
    replicate: int
    shard: int
    zero_stage: int
    tensor_parallel: int
    sequence_parallel: bool
    pipeline_parallel: int
    pipeline_schedule: PipelineSchedule
    stages_per_rank: int
    pipeline_split: tuple[int, ...] | None
    pipeline_schedule_file: Path | None
    context_parallel: int
    context_method: Literal["ring", "ulysses"]
    micro_batch_size: int
    recompute: Recompute
    recompute_every: int
    offload: Literal["none", "optimizer", "parameters"]
    offload_activations: bool
    compile: bool

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return self.pipeline_parallel * self.stages_per_rank

    def micro_batches(self, global_batch_size: int, times_shorter: int = 1) -> tuple[int, int]:
        """How many micro-batches a step has on every rank, and how many samples each.

        At most `micro_batch_size` and as even as can be: what fills up a micro-batch is computed for nothing.

        Args:
            global_batch_size: samples of the step.
            times_shorter: how often a sample of this phase fits into one of the recipe's own sequence length;
                micro-batches take that many times as many.
        """
        largest_slice = -(-global_batch_size // self.data_parallel)
        count = -(-largest_slice // (self.micro_batch_size * max(1, times_shorter)))
        return count, -(-largest_slice // count)

    def describe(self) -> str:
        """In words, such as `ZeRO-3 x2, tensor parallel 2 (sequence parallel)`."""
        parts = []
        if self.zero_stage > 0:
            copies = f", {self.replicate} copies (HSDP)" if self.replicate > 1 else ""
            parts.append(f"ZeRO-{self.zero_stage} x{self.shard}{copies}")
        elif self.data_parallel > 1:
            parts.append(f"data parallel {self.data_parallel}")
        if self.tensor_parallel > 1:
            sequence = " (sequence parallel)" if self.sequence_parallel else ""
            parts.append(f"tensor parallel {self.tensor_parallel}{sequence}")
        if self.context_parallel > 1:
            parts.append(f"context parallel {self.context_parallel} ({self.context_method})")
        if self.pipeline_parallel > 1:
            stages = f", {self.stages_per_rank} stages per rank" if self.stages_per_rank > 1 else ""
            parts.append(f"pipeline parallel {self.pipeline_parallel} ({self.pipeline_schedule}{stages})")
        return ", ".join(parts) or "single process"


def resolve_layout(layout: LayoutSection, world_size: int) -> ResolvedLayout:
    """Fill in `auto` and split data parallelism into copies and ZeRO shards.

    Args:
        layout: the recipe's section.
        world_size: processes of the run.

    Raises: LayoutError if the layout does not multiply to the world size; the message says what would.
    """
    problems = list(layout_problems(layout, world_size))
    if problems:
        raise LayoutError("\n".join(problems))
    data_parallel = world_size // model_parallel_size(layout)
    replicate = data_parallel if layout.zero_stage == 0 else layout.data_parallel_replicate
    in_one_piece = layout.pipeline_parallel == 1
    return ResolvedLayout(
        world_size=world_size,
        data_parallel=data_parallel,
        replicate=replicate,
        shard=data_parallel // replicate,
        zero_stage=layout.zero_stage,
        tensor_parallel=layout.tensor_parallel,
        sequence_parallel=layout.sequence_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        pipeline_schedule=PipelineSchedule.ONE_F_ONE_B if in_one_piece else layout.pipeline_schedule,
        stages_per_rank=1 if in_one_piece else stages_per_rank(layout),
        pipeline_split=None if in_one_piece else layout.pipeline_split,
        pipeline_schedule_file=None if in_one_piece else layout.pipeline_schedule_file,
        context_parallel=layout.context_parallel,
        context_method=layout.context_method,
        micro_batch_size=layout.micro_batch_size,
        recompute=layout.recompute,
        recompute_every=layout.recompute_every,
        offload=layout.offload,
        offload_activations=layout.offload_activations,
        compile=layout.compile,
    )


def stages_per_rank(layout: LayoutSection) -> int:
    """Stages on each pipeline rank, default filled in."""
    single = {PipelineSchedule.GPIPE, PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.FILE}
    if layout.pipeline_stages_per_rank is not None:
        return layout.pipeline_stages_per_rank
    return 1 if layout.pipeline_parallel == 1 or layout.pipeline_schedule in single else 2


def model_parallel_size(layout: LayoutSection) -> int:
    """Ranks that share one copy of the model and one slice of the samples."""
    return layout.tensor_parallel * layout.context_parallel * layout.pipeline_parallel


def _model_parallel(layout: LayoutSection) -> str:
    """The sizes that share a model or a sequence, in words; those of 1 left out."""
    keys = ("tensor_parallel", "context_parallel", "pipeline_parallel")
    sizes = {f"layout.{key}": getattr(layout, key) for key in keys}
    return " x ".join(f"{key}={size}" for key, size in sizes.items() if size > 1) or "layout.tensor_parallel=1"


def layout_problems(layout: LayoutSection, world_size: int) -> Iterator[str]:
    """Why a layout does not multiply to a world of this size, each with what to use instead."""
    size, data, copies = model_parallel_size(layout), layout.data_parallel, layout.data_parallel_replicate
    if world_size % size:
        named = _model_parallel(layout)
        product_of = "a product of " if " x " in named else ""
        yield (
            f"{named} does not divide the {processes(world_size)} of this run; "
            f"use {product_of}{either(near_divisors(world_size, size))}, or start a multiple of {size}"
        )
        return
    fitting = world_size // size
    if data != "auto" and data != fitting:  # noqa: PLR1714  (mypy narrows this form)
        yield (
            f"layout.data_parallel={data} x {_model_parallel(layout)} does not make the "
            f"{processes(world_size)} of this run; use layout.data_parallel={fitting} (or auto), "
            f"or start {processes(data * size)}"
        )
        return
    if copies > 1 and layout.zero_stage == 0:
        yield (
            f"layout.data_parallel_replicate={copies} needs layout.zero_stage 1, 2 or 3: "
            "with 0 every data-parallel rank holds a copy already; remove one of the two"
        )
    if fitting % copies:
        yield (
            f"layout.data_parallel_replicate={copies} does not divide the {fitting} data-parallel ranks; "
            f"use {either(near_divisors(fitting, copies))}"
        )


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [candidate for candidate in range(1, int(number**0.5) + 1) if number % candidate == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def near_divisors(number: int, wanted: int) -> list[int]:
    """The few divisors nearest to what was wanted, by ratio, ascending: all that a message has room for."""
    by_ratio = sorted(divisors(number), key=lambda divisor: abs(log(divisor / wanted)))
    return sorted(by_ratio[:_FEW])


def either(numbers: list[int]) -> str:
    """`1, 2 or 4`."""
    *first, last = [str(number) for number in numbers]
    return f"{', '.join(first)} or {last}" if first else last


def processes(count: int) -> str:
    """`1 process`, `4 processes`."""
    return f"{count} process" if count == 1 else f"{count} processes"
