"""From a recipe to DeepSpeed's configuration, and what of a recipe this engine cannot do; imports no deepspeed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ptm_dist.models import parameter_shapes
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import DeepSpeedSection, LayoutSection, Precision, Recipe, Recompute

LARGEST_BUCKET = 200_000_000
"""Elements that are reduced or gathered at a time; DeepSpeed allocates buffers of that many."""
INITIAL_SCALE_POWER = 16
"""Power of two with which fp16 starts its loss scale."""
SUB_GROUP = 50_000_000
"""Elements of a rank that go to nvme and come back together; DeepSpeed has four buffers for so many in host memory."""

Place = Literal["none", "cpu", "nvme"]


class Offload(NamedTuple):
    """Where state lies between its uses."""

    optimizer: Place
    parameters: Place


def offload_of(section: DeepSpeedSection, offload: Literal["none", "optimizer", "parameters"]) -> Offload:
    """What deepspeed.* and layout.offload ask for together; the latter means host memory."""
    optimizer: Place = "none" if offload == "none" else "cpu"
    parameters: Place = "cpu" if offload == "parameters" else "none"
    return Offload(
        section.offload_optimizer if section.offload_optimizer != "none" else optimizer,
        section.offload_parameters if section.offload_parameters != "none" else parameters,
    )


def deepspeed_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    """Why engine=deepspeed cannot compute a recipe, each with what to use instead; nothing for other engines.

    Args:
        recipe: what is learnt, and the engine's own section.
        layout: where; need not be the recipe's own.
        world_size: processes of the run.
    """
    if recipe.engine != "deepspeed":
        return
    yield from _layout_problems(layout)
    yield from _offload_problems(offload_of(recipe.deepspeed, layout.offload), layout.zero_stage)
    yield from _nvme_problems(recipe.deepspeed, layout.zero_stage)
    if recipe.training.precision is Precision.FP64:
        yield "training.precision=fp64: DeepSpeed knows no float64; use engine=native, or training.precision=fp32"
    if recipe.optimizer.kind == "lamb":
        yield (
            "optimizer.kind=lamb needs norms of whole parameters, of which DeepSpeed cuts pieces; use engine=native, "
            "or optimizer.kind=adamw"
        )


def _layout_problems(layout: LayoutSection) -> Iterator[str]:
    others = {"tensor_parallel": "native or megatron", "pipeline_parallel": "native or megatron"}
    for key, engines in {**others, "context_parallel": "native"}.items():
        if (size := getattr(layout, key)) > 1:
            yield (
                f"layout.{key}={size}: engine=deepspeed shares the state of data-parallel ranks only (ZeRO); use "
                f"engine={engines}, or layout.{key}=1 with layout.zero_stage=3"
            )
    if layout.data_parallel_replicate > 1:
        yield (
            f"layout.data_parallel_replicate={layout.data_parallel_replicate}: engine=deepspeed shares state between "
            "all ranks; use engine=native, or layout.data_parallel_replicate=1"
        )
    if layout.compile and layout.zero_stage == 3:
        yield (
            "layout.compile=true with layout.zero_stage=3: DeepSpeed fetches parameters inside the blocks; use "
            "layout.zero_stage=2, or engine=native"
        )
    if layout.offload_activations and layout.zero_stage == 3:
        yield (
            "layout.offload_activations=true with layout.zero_stage=3: DeepSpeed fetches parameters inside the blocks, "
            "where they look like activations; use layout.zero_stage=2, or engine=native"
        )
    if layout.recompute is Recompute.SELECTIVE and layout.zero_stage == 3:
        yield (
            "layout.recompute=selective with layout.zero_stage=3: DeepSpeed fetches parameters by operations that "
            "torch would run again; use layout.recompute=full, layout.zero_stage=2, or engine=native"
        )


def _offload_problems(offload: Offload, zero_stage: int) -> Iterator[str]:
    if offload.optimizer != "none" and zero_stage == 0:
        yield (
            "offloaded optimizer state (deepspeed.offload_optimizer or layout.offload) needs layout.zero_stage 1, 2 or "
            "3 with engine=deepspeed; set one, or leave the offload out"
        )
    if offload.parameters != "none" and zero_stage != 3:
        yield (
            "offloaded parameters (deepspeed.offload_parameters or layout.offload) need layout.zero_stage=3 with "
            f"engine=deepspeed, not {zero_stage}; set it, or offload the optimizer only"
        )


def _nvme_problems(section: DeepSpeedSection, zero_stage: int) -> Iterator[str]:
    keys = [key for key in ("offload_optimizer", "offload_parameters") if getattr(section, key) == "nvme"]
    if not keys:
        return
    named = " and ".join(f"deepspeed.{key}=nvme" for key in keys)
    if zero_stage in (1, 2) and section.offload_parameters != "nvme":
        # Below, DeepSpeed takes nvme for cpu and says nothing.
        yield f"{named} needs layout.zero_stage=3, not {zero_stage}; set it, or use cpu"
    if section.nvme_path is None:
        yield f"{named} needs deepspeed.nvme_path, a folder on a fast local disk of every machine; set it, or use cpu"


def deepspeed_config(recipe: Recipe, layout: ResolvedLayout, swap_folder: Path | None = None) -> dict[str, Any]:
    """DeepSpeed's configuration (https://www.deepspeed.ai/docs/config-json).

    How many micro-batches a step has may change during a run, and the loss is already divided by the number of
    targets: DeepSpeed is told to leave the end of a step to the caller.

    Args:
        recipe: what is learnt.
        layout: where.
        swap_folder: of this rank, where state is offloaded to nvme.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if clips_itself(recipe, layout) else recipe.optimizer.clip_norm or math.inf,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(recipe, layout, swap_folder),
        **_numbers(recipe.training.precision, layout.zero_stage),
    }


def clips_itself(recipe: Recipe, layout: ResolvedLayout) -> bool:
    """Whether clipping is left to this engine: DeepSpeed has no optimizer of its own there, and forgets the norm."""
    return layout.zero_stage == 0 and recipe.training.precision is Precision.FP32


def _zero(recipe: Recipe, layout: ResolvedLayout, swap_folder: Path | None) -> dict[str, Any]:
    numels = [math.prod(shape) for shape in parameter_shapes(recipe.model).values()]
    bucket = min(LARGEST_BUCKET, sum(numels) + sum(numels) % 2)
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if layout.zero_stage == 3:
        sizes = {"reduce_bucket_size": bucket, "stage3_prefetch_bucket_size": bucket // 10}
    zero: dict[str, Any] = {"stage": layout.zero_stage, **sizes}
    offload = offload_of(recipe.deepspeed, layout.offload)
    if "nvme" in offload:
        zero["sub_group_size"] = SUB_GROUP
    if offload.optimizer != "none":
        zero["offload_optimizer"] = {"device": offload.optimizer, **_folder(offload.optimizer, swap_folder)}
    if offload.parameters != "none":
        zero["offload_param"] = {"device": offload.parameters, **_folder(offload.parameters, swap_folder)}
    if offload.parameters == "nvme":
        zero["offload_param"] |= {"max_in_cpu": 0, "buffer_size": -(-max(numels) // layout.world_size)}
        # A parameter has one of few buffers as long as it is whole: none stays for its next use, none comes early.
        zero |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
    return zero


def _folder(place: Place, swap_folder: Path | None) -> dict[str, str]:
    return {"nvme_path": str(swap_folder)} if place == "nvme" else {}


def _numbers(precision: Precision, zero_stage: int) -> dict[str, Any]:
    """Number formats: gradients of low precision are added up and reduced in float32 where DeepSpeed can."""
    if precision not in (Precision.BF16, Precision.FP16):
        return {}
    numbers: dict[str, Any] = {"communication_data_type": "fp32"}
    if zero_stage > 0:
        numbers["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision is Precision.BF16:
        return {**numbers, "bf16": {"enabled": True, "check_grad_overflow": True}}
    scale = {"initial_scale_power": INITIAL_SCALE_POWER, "hysteresis": 1, "min_loss_scale": 1}
    return {**numbers, "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, **scale}}
