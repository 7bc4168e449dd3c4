from __future__ import annotations

from typing import Any

import pytest
import torch

from ptm_dist.engines.native import NativeEngine
from ptm_dist.models import build_model
from ptm_dist.parallel.recompute import recompute_blocks
from ptm_dist.parallel.tensor import split_dimension
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.memory import MemoryEstimate, estimate_memory
from tests.distributed import run_distributed
from tests.ptm_dist.recipes import small_recipe

UNEVEN = {"model__vocab_size": 101, "model__ffn_hidden_size": 50}
LAYOUTS = [
    (1, {}),
    (2, {}),
    (3, {"zero_stage": 1}),
    (4, {"zero_stage": 2}),
    (4, {"zero_stage": 3, "data_parallel_replicate": 2}),
    (4, {"tensor_parallel": 4}),
    (4, {"tensor_parallel": 2, "zero_stage": 3, "sequence_parallel": True}),
]


def recipe_of(layout: dict[str, Any], **values: Any) -> Recipe:
    return small_recipe(**values, **{f"layout__{key}": value for key, value in layout.items()})


def estimate(recipe: Recipe, world_size: int) -> MemoryEstimate:
    return estimate_memory(recipe, resolve_layout(recipe.layout, world_size))


def chunk(tensor: torch.Tensor, parts: int, index: int, dim: int) -> torch.Tensor:
    chunks = tensor.chunk(parts, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


@pytest.mark.parametrize(("world_size", "layout"), LAYOUTS)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_fullest_rank(world_size: int, layout: dict[str, Any], tied: bool):
    recipe = recipe_of(layout, **UNEVEN, model__tie_embeddings=tied)
    resolved = resolve_layout(recipe.layout, world_size)
    with torch.device("meta"):
        parameters = dict(build_model(recipe.model).named_parameters())
    counts = []
    for tensor_rank in range(resolved.tensor_parallel):
        for shard_rank in range(resolved.shard):
            count = 0
            for name, parameter in parameters.items():
                dim = split_dimension(name)
                part = parameter if dim is None else chunk(parameter, resolved.tensor_parallel, tensor_rank, dim)
                count += chunk(part, resolved.shard, shard_rank, 0).numel()
            counts.append(count)
    memory = estimate(recipe, world_size)
    assert memory.weights == 4 * max(counts)
    assert memory.optimizer == 8 * max(counts)


def held(recipe: Recipe, world_size: int) -> tuple[int, int]:
    engine = NativeEngine(recipe, resolve_layout(recipe.layout, world_size), torch.device("cpu"))
    state = engine.state()
    sizes = {name: shard.local.numel() * shard.local.element_size() for name, shard in state.items()}
    weights = sum(size for name, size in sizes.items() if name.startswith("model."))
    return weights, sum(sizes.values()) - weights


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_the_engine_holds_what_was_estimated(precision: str):
    world_size, layout = LAYOUTS[-1]
    recipe = recipe_of(layout, **UNEVEN, training__precision=precision)
    ranks = run_distributed(held, world_size, recipe, world_size)
    memory = estimate(recipe, world_size)
    assert max(weights for weights, _ in ranks) == memory.weights
    assert max(optimizer for _, optimizer in ranks) == memory.optimizer


def stored_bytes(recipe: Recipe) -> int:
    dtype = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}[recipe.training.precision]
    model = build_model(recipe.model).to(dtype)
    if recipe.layout.recompute == "full":
        recompute_blocks(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stored: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage
        return tensor

    shape = (recipe.layout.micro_batch_size, recipe.data.sequence_length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randint(0, recipe.model.vocab_size, shape))
    return sum(storage.nbytes() for storage in stored.values())


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
def test_activations_are_what_autograd_stores(precision: str):
    recipe = recipe_of({"micro_batch_size": 3}, **UNEVEN, training__precision=precision)
    # On the CPU LayerNorm's statistics are in bfloat16 too; on CUDA, and in the formula, in float32.
    tolerance = 0.02 if precision == "bf16" else 0.0
    assert estimate(recipe, 1).activations == pytest.approx(stored_bytes(recipe), rel=tolerance)


def test_full_recomputation_stores_one_input_per_block_and_one_block_at_work():
    deep = {"model__num_layers": 12, "layout__recompute": "full"}
    shallow = {"model__num_layers": 2, "layout__recompute": "full"}
    more, fewer = small_recipe(**deep), small_recipe(**shallow)
    stream = 10 * 16 * 32 * 4
    assert estimate(more, 1).activations - estimate(fewer, 1).activations == stream
    assert stored_bytes(more) - stored_bytes(fewer) == stream
    without = small_recipe(model__num_layers=12)
    assert estimate(more, 1).activations < estimate(without, 1).activations / 4


def test_each_zero_stage_needs_less_and_so_do_tensor_and_sequence_parallelism():
    by_stage = [estimate(recipe_of({"zero_stage": stage}, model__num_layers=8), 4).total for stage in (0, 1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)
    assert len(set(by_stage)) == 4
    plain, split, both = (
        estimate(recipe_of(layout), world_size)
        for world_size, layout in (
            (1, {}),
            (4, {"tensor_parallel": 4}),
            (4, {"tensor_parallel": 4, "sequence_parallel": True}),
        )
    )
    assert plain.activations > split.activations > both.activations
    assert plain.logits == 4 * split.logits


def test_a_single_process_in_one_precision_keeps_no_copies():
    memory = estimate(small_recipe(), 1)
    assert memory.whole_weights == 0
    assert memory.gradients == memory.weights
    in_bfloat16 = estimate(small_recipe(training__precision="bf16"), 1)
    assert in_bfloat16.whole_weights == memory.weights / 2
