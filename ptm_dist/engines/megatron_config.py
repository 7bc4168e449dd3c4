"""From a recipe to Megatron-Core's own settings, and what it cannot do; imports Megatron-Core only where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F

from ptm_dist.errors import RecipeError
from ptm_dist.models.model import Part
from ptm_dist.models.spec import Activation, ModelSpec
from ptm_dist.recipe.layout import ResolvedLayout, divisors, either, stages_per_rank
from ptm_dist.recipe.schema import Family, LayoutSection, PipelineSchedule, Precision, Recipe, Recompute

VERSION = "0.16.1"
_NATIVE = "engine=native does it"
_SCHEDULES = {PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.INTERLEAVED_1F1B}
_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def megatron_problems(recipe: Recipe, layout: LayoutSection, world_size: int) -> Iterator[str]:
    """What engine=megatron cannot do exactly as the recipe says, each with the engine or the value that can.

    Args:
        recipe: as loaded.
        layout: its layout, or another one for the same recipe.
        world_size: processes of the run; one process needs nothing of a layout.
    """
    yield from _model_problems(recipe)
    yield from _number_problems(recipe)
    if layout.offload != "none":
        yield f"engine=megatron does not offload (layout.offload={layout.offload}); {_NATIVE}"
    if layout.offload_activations:
        yield f"engine=megatron does not offload (layout.offload_activations); {_NATIVE}"
    if layout.compile:
        yield f"engine=megatron does not compile blocks (layout.compile); {_NATIVE}"
    if layout.recompute is Recompute.SELECTIVE or (layout.recompute is Recompute.FULL and layout.recompute_every > 1):
        yield (
            "engine=megatron recomputes whole layers and all of them; use layout.recompute=full (or none) and "
            "layout.recompute_every=1, or engine=native"
        )
    if world_size > 1:
        yield from _parallel_problems(recipe, layout)


def _model_problems(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if (model.layer_groups or model.num_layers) != model.num_layers or model.family is Family.ALBERT:
        yield f"engine=megatron has no layers that share one block (model.family={model.family}); {_NATIVE}"
    if model.embedding_size not in {None, model.hidden_size}:
        yield (
            f"engine=megatron has no embeddings narrower than the hidden states (model.embedding_size="
            f"{model.embedding_size}); {_NATIVE}"
        )


def _number_problems(recipe: Recipe) -> Iterator[str]:
    precision, optimizer = recipe.training.precision, recipe.optimizer
    if precision not in _DTYPES:
        yield f"engine=megatron computes in bf16 and fp32, not in training.precision={precision}; {_NATIVE}"
    if optimizer.kind != "adamw":
        yield f"engine=megatron updates by optimizer.kind=adamw, not by {optimizer.kind}; {_NATIVE}"
    if not optimizer.bias_correction:
        yield f"engine=megatron always corrects Adam's bias, but optimizer.bias_correction=false; {_NATIVE}"


def _parallel_problems(recipe: Recipe, layout: LayoutSection) -> Iterator[str]:
    tensor, model = layout.tensor_parallel, recipe.model
    for key, size in (("num_heads", model.num_heads), ("ffn_hidden_size", model.ffn_width)):
        if size % tensor:
            yield (
                f"engine=megatron needs a layout.tensor_parallel that divides model.{key}={size}, not {tensor}; "
                f"use {either(divisors(size))}, or engine=native"
            )
    if layout.zero_stage > 1:
        yield f"engine=megatron has layout.zero_stage 0 and 1, not {layout.zero_stage}; {_NATIVE}, or engine=deepspeed"
    if layout.zero_stage and layout.data_parallel_replicate > 1:
        yield (
            "engine=megatron shares optimizer state between all data-parallel ranks, but "
            f"layout.data_parallel_replicate={layout.data_parallel_replicate}; use 1, or engine=native"
        )
    yield from _length_problems(recipe, layout)
    yield from _pipeline_problems(layout)


def _length_problems(recipe: Recipe, layout: LayoutSection) -> Iterator[str]:
    if layout.context_parallel == 1:
        return
    unit = layout.context_parallel * lcm(2, layout.tensor_parallel if layout.sequence_parallel else 1)
    lengths = {f"training.phases[{n}].sequence_length": p.sequence_length for n, p in enumerate(recipe.training.phases)}
    for key, length in {**lengths, "data.sequence_length": recipe.data.sequence_length}.items():
        if length % unit:
            yield (
                f"engine=megatron shares sequences in chunks of one size, but {key}={length} is no multiple of {unit}; "
                f"use {length - length % unit or unit}, or engine=native"
            )


def _pipeline_problems(layout: LayoutSection) -> Iterator[str]:
    if layout.pipeline_parallel == 1:
        return
    schedule, stages = layout.pipeline_schedule, stages_per_rank(layout)
    if schedule not in _SCHEDULES:
        yield (
            f"engine=megatron has layout.pipeline_schedule 1f1b and interleaved_1f1b, not {schedule}; "
            "use one of them, or engine=native"
        )
    elif (schedule is PipelineSchedule.ONE_F_ONE_B) != (stages == 1):
        yield (
            f"layout.pipeline_schedule={schedule} does not go with {stages} stages on each rank; use "
            f"{'interleaved_1f1b' if stages > 1 else '1f1b'}, or another layout.pipeline_stages_per_rank"
        )


def check_installed() -> None:
    """Raise a RecipeError that says what to install where Megatron-Core is missing, or is another version.

    Its state is reached by names that it does not promise to keep.
    """
    try:
        from megatron.core import __version__ as version
    except ImportError as error:
        raise RecipeError(
            "engine=megatron needs Megatron-Core; run: pip install 'ptm-dist[megatron]', or use engine=native"
        ) from error
    if version != VERSION:
        raise RecipeError(
            f"engine=megatron works with Megatron-Core {VERSION}, and {version} is installed; "
            "run: pip install 'ptm-dist[megatron]', or use engine=native"
        )


def check_device(device: torch.device) -> None:
    """Raise a RecipeError where Megatron-Core would compute elsewhere than on `device`: it knows CUDA alone."""
    try:
        current = torch.device(torch.cuda.current_device())
    except (AssertionError, RuntimeError):
        current = None
    if current is None or current.type != device.type:
        raise RecipeError("engine=megatron needs CUDA; use engine=native or deepspeed on this machine")


def start_groups(layout: ResolvedLayout) -> None:
    """Make Megatron-Core's process groups out of the default group; its order of ranks is ours.

    Raises: RuntimeError if they exist already: one process has one engine at a time.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    if parallel_state.model_parallel_is_initialized():
        raise RuntimeError("Megatron-Core is in use in this process; close the other engine first")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=_chunks(layout),
        context_parallel_size=layout.context_parallel,
        order="tp-cp-ep-dp-pp",
        create_gloo_process_groups=False,
    )
    # Nothing here is random, but Megatron-Core's modules ask for its generators.
    model_parallel_cuda_manual_seed(0)


def stop_groups() -> None:
    """Take down what :func:`start_groups` made."""
    from megatron.core import parallel_state

    groups = {id(group): group for group in parallel_state._global_process_group_list or () if group is not None}
    parallel_state.destroy_model_parallel()
    for group in groups.values():
        torch.distributed.destroy_process_group(group)


def transformer_config(spec: ModelSpec, recipe: Recipe, layout: ResolvedLayout, parts: list[Part]) -> Any:
    """Megatron-Core's TransformerConfig: no dropout, no fusions, gradients that are sums, weights filled by us.

    Args:
        spec: of the model.
        recipe: for its numbers.
        layout: for its parallelism.
        parts: of the model, one for each stage of the pipeline in order.
    """
    from megatron.core.transformer import TransformerConfig

    block, dtype = spec.block, _DTYPES[recipe.training.precision]
    interleaved = _chunks(layout) is not None
    whole_layers = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        num_layers=spec.num_layers,
        hidden_size=block.hidden_size,
        num_attention_heads=block.num_heads,
        ffn_hidden_size=block.ffn_hidden_size,
        activation_func=partial(F.gelu, approximate="tanh" if block.activation is Activation.GELU_TANH else "none"),
        layernorm_epsilon=block.layer_norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tensor_parallel,
        sequence_parallel=layout.sequence_parallel,
        context_parallel_size=layout.context_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=_chunks(layout),
        pipeline_model_parallel_layout=_stages(parts) if layout.pipeline_parallel > 1 else None,
        # Batched messages between the same two ranks get mixed up where both hold several stages.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # Losses arrive divided by the global number of targets: nothing is averaged any more.
        calculate_per_token_loss=True,
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        **(whole_layers if layout.recompute is Recompute.FULL else {}),
    )


def optimizer_config(recipe: Recipe, layout: ResolvedLayout) -> Any:
    """Megatron-Core's OptimizerConfig: AdamW and clipping as the recipe says; learning rates come with each step."""
    from megatron.core.optimizer import OptimizerConfig

    section, dtype = recipe.optimizer, _DTYPES[recipe.training.precision]
    return OptimizerConfig(
        optimizer="adam",
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        adam_beta1=section.betas[0],
        adam_beta2=section.betas[1],
        adam_eps=section.eps,
        clip_grad=section.clip_norm,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_distributed_optimizer=layout.zero_stage == 1,
    )


def data_parallel_config(layout: ResolvedLayout) -> Any:
    """Megatron-Core's DistributedDataParallelConfig: float32 sums of gradients, optimizer state shared by ZeRO-1."""
    from megatron.core.distributed import DistributedDataParallelConfig

    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=layout.zero_stage == 1, average_in_collective=False
    )


def _chunks(layout: ResolvedLayout) -> int | None:
    """Stages of a rank as Megatron-Core counts them: None for one."""
    return layout.stages_per_rank if layout.stages_per_rank > 1 and layout.pipeline_parallel > 1 else None


def _stages(parts: list[Part]) -> list[list[str]]:
    """What stands in each stage, in Megatron-Core's words."""
    stages = [["decoder"] * (part.end - part.first) for part in parts]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _leave(weight: torch.Tensor) -> torch.Tensor:
    """Initial weights that are filled later."""
    return weight
