"""Who takes part: from a problem to a function that takes one training step and gives its loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.peers.bert import PlainBERT
from benchmarks.peers.gpt import PlainGPT
from benchmarks.peers.hugging_face import HuggingFace
from benchmarks.peers.loop import Loop
from benchmarks.workloads import LEARNING_RATE, Problem, initial_weights, random_batch
from ptm_dist.engines.native import NativeEngine
from ptm_dist.models.hf import to_hf
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.processes import settle

Step = Callable[[], float]
CPU = torch.device("cpu")


def ours(problem: Problem, device: torch.device = CPU, **layout: Any) -> Step:
    """The native engine at a layout, in a process like those of ``ptm train``."""
    settle(device.type)
    ranks = _world()
    data_ranks = ranks // layout.get("tensor_parallel", 1)
    recipe = problem.recipe(data_ranks, **layout)
    return _engine_step(NativeEngine(recipe, resolve_layout(recipe.layout, ranks), device), recipe, device)


def megatron(problem: Problem, device: torch.device = CPU, **layout: Any) -> Step:
    """Megatron-Core's GPTModel or encoder, data parallelism and optimizer, as engine=megatron assembles them."""
    shim: Callable[[], AbstractContextManager[object]] = nullcontext
    if device.type == "cpu":
        from tests.megatron_cpu import cuda_is_cpu as shim
    recipe = problem.recipe(_world(), engine="megatron", **layout)
    with shim():
        from ptm_dist.engines.megatron import MegatronEngine

        engine = MegatronEngine(recipe, resolve_layout(recipe.layout, _world()), device)
    step = _engine_step(engine, recipe, device)

    def shimmed() -> float:
        with shim():
            return step()

    return shimmed


def deepspeed(problem: Problem, device: torch.device = CPU, **layout: Any) -> Step:
    """DeepSpeed around our model, which is no handicap for it, as engine=deepspeed starts it."""
    from ptm_dist.engines.deepspeed import DeepSpeedEngine

    recipe = problem.recipe(_world(), engine="deepspeed", **layout)
    return _engine_step(DeepSpeedEngine(recipe, resolve_layout(recipe.layout, _world()), device), recipe, device)


def plain(
    problem: Problem,
    device: torch.device = CPU,
    *,
    picks: bool = False,
    compiled: bool = False,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> Step:
    """Plain PyTorch; `picks` as in :class:`PlainBERT`, `wrap` makes it data parallel."""
    recipe = problem.recipe(_world())
    is_encoder = recipe.objective.kind != "causal"
    model: Any = PlainBERT(recipe.model, picks=picks) if is_encoder else PlainGPT(recipe.model)
    return _loop_step(model, recipe, device, compiled=compiled, wrap=wrap)


def hugging_face(problem: Problem, device: torch.device = CPU, *, compiled: bool = False) -> Step:
    """The class of transformers in the loop that its Trainer runs."""
    recipe = problem.recipe(_world())
    return _loop_step(HuggingFace(recipe.model), recipe, device, compiled=compiled, wrap=None)


def _loop_step(
    model: Any, recipe: Recipe, device: torch.device, *, compiled: bool, wrap: Callable[[nn.Module], nn.Module] | None
) -> Step:
    model.take(to_hf(initial_weights(recipe), recipe.model))
    model.to(device)
    if wrap is not None:
        model = wrap(model)
    if compiled:
        model = torch.compile(model)
    micro = recipe.layout.micro_batch_size
    assert isinstance(micro, int)
    loop = Loop(model, recipe, micro)
    rank = dist.get_rank() if dist.is_initialized() else 0
    batch = random_batch(recipe, rank, _world(), device)
    return lambda: loop.step(batch)


def _engine_step(engine: Any, recipe: Recipe, device: torch.device) -> Step:
    batch = random_batch(recipe, engine.dp_rank, engine.dp_size, device)
    return lambda: float(engine.step(batch, LEARNING_RATE).loss)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
