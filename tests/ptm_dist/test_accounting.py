"""Three accounts of one step: of real processes, of a simulated rank, and by formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptm_dist.accounting.closed_form import step_traffic
from ptm_dist.accounting.cost import simulated_cost, step_cost
from ptm_dist.accounting.holdings import Place
from ptm_dist.accounting.simulate import Task, simulate, watch_step
from ptm_dist.accounting.watch import Observed, Traffic
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.memory import estimate_memory, rank_memory
from tests.distributed import run_distributed
from tests.ptm_dist.recipes import small_recipe

TENSOR = {"tensor_parallel": 2}
SPLIT = {**TENSOR, "sequence_parallel": True}
PIPELINE = {"pipeline_parallel": 2}
LOOPED = {**PIPELINE, "pipeline_schedule": "interleaved_1f1b", "pipeline_stages_per_rank": 2}
RING = {"context_parallel": 2}
ULYSSES = {**RING, "context_method": "ulysses"}
FULL = {"recompute": "full"}
CHUNKS = {"kernels__linear_cross_entropy": "chunked"}
BERT = {"model__family": "bert", "objective__kind": "mlm_nsp"}

MEASURED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "data parallel": (2, {}, {}),
    "zero 1": (2, {"zero_stage": 1}, {}),
    "zero 2": (2, {"zero_stage": 2}, {}),
    "zero 3": (2, {"zero_stage": 3}, {}),
    "tensor": (2, TENSOR, {}),
    "tensor, split positions": (2, SPLIT, {}),
    "1f1b": (2, PIPELINE, {}),
    "interleaved": (2, LOOPED, {"model__num_layers": 4}),
    "ring": (2, RING, {}),
    "ulysses": (2, ULYSSES, {}),
    "bert, zero 3": (2, {"zero_stage": 3}, BERT),
    "bert, tensor, split positions": (2, SPLIT, BERT),
    "bert, 1f1b": (2, PIPELINE, BERT),
    "zero 3, recomputed": (2, {"zero_stage": 3, **FULL}, {}),
    "tensor, split positions, recomputed": (2, {**SPLIT, **FULL}, {}),
    "1f1b, recomputed": (2, {**PIPELINE, **FULL}, {}),
    "ring, recomputed": (2, {**RING, **FULL}, {}),
    "logits in chunks": (2, {}, CHUNKS),
    "logits in chunks, tensor, split positions": (2, SPLIT, CHUNKS),
    "logits in chunks, bert, tensor": (2, TENSOR, {**BERT, **CHUNKS}),
    "logits in chunks, 1f1b": (2, PIPELINE, CHUNKS),
    "data parallel x tensor": (4, TENSOR, {"training__global_batch_size": 4}),
}
SIMULATED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "zero 3 x tensor x 1f1b": (8, {**TENSOR, **PIPELINE, "zero_stage": 3}, {"training__global_batch_size": 4}),
    "two chunks of logits on each of two tensor-parallel ranks": (
        2,
        TENSOR,
        {"data__sequence_length": 3000, "model__max_positions": 3000, "model__vocab_size": 200_000},
    ),
    "zero 2 in two copies": (4, {"zero_stage": 2, "data_parallel_replicate": 2}, {}),
    "zero 3 x two halves of backward passes": (
        4,
        {**PIPELINE, "zero_stage": 3, "pipeline_schedule": "zbv_zero_bubble", "pipeline_stages_per_rank": 2},
        {"model__num_layers": 4},
    ),
    "shared blocks x zero 3 x 1f1b": (
        4,
        {**PIPELINE, "zero_stage": 3},
        {"model__family": "albert", "objective__kind": "mlm_sop", "model__num_layers": 4, "model__layer_groups": 2},
    ),
    "three ranks that divide nothing, lamb": (3, {**SPLIT, "tensor_parallel": 3}, {"optimizer__kind": "lamb"}),
    "ring x bfloat16, three ranks": (3, {"context_parallel": 3}, {"training__precision": "bf16"}),
    "every second layer recomputed in part": (2, {**SPLIT, "recompute": "selective", "recompute_every": 2}, {}),
}


def recipe_of(layout: dict[str, Any], values: dict[str, Any]) -> Recipe:
    """Several micro-batches of one sample: two, in a pipeline and where ranks read different samples up to four."""
    alone = "tensor_parallel" in layout or "context_parallel" in layout
    given = {"training__global_batch_size": 2 if alone else 4, "layout__micro_batch_size": 1, **values}
    return small_recipe(**given, **{f"layout__{key}": value for key, value in layout.items()})


def task_of(case: tuple[int, dict[str, Any], dict[str, Any]], rank: int) -> Task:
    world_size, layout, values = case
    return Task(recipe_of(layout, values), world_size, rank)


def ranks_of(case: tuple[int, dict[str, Any], dict[str, Any]]) -> list[int]:
    """The first one; the last one too where it does something else."""
    world_size, layout, _ = case
    return [0, world_size - 1] if "pipeline_parallel" in layout or world_size == 3 else [0]


def watch_all(recipes: list[Recipe], world_size: int) -> list[Observed]:
    found = []
    for recipe in recipes:
        engine = NativeEngine(recipe, resolve_layout(recipe.layout, world_size), torch.device("cpu"))
        found.append(watch_step(engine, steps=2))
        engine.close()
    return found


@pytest.fixture(scope="module")
def simulated() -> dict[tuple[str, int], Observed]:
    cases = MEASURED | SIMULATED
    keys = [(name, rank) for name, case in cases.items() for rank in ranks_of(case)]
    return dict(zip(keys, simulate([task_of(cases[name], rank) for name, rank in keys]), strict=True))


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], Observed]:
    found = {}
    for world_size in (2, 4):
        names = [name for name, case in MEASURED.items() if case[0] == world_size]
        ranks = run_distributed(
            watch_all, world_size, [task_of(MEASURED[name], 0).recipe for name in names], world_size
        )
        found |= {(name, rank): ranks[rank][at] for at, name in enumerate(names) for rank in range(world_size)}
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_a_simulated_rank_holds_and_sends_to_the_byte_what_a_real_one_does(
    name: str, measured: dict[tuple[str, int], Observed], simulated: dict[tuple[str, int], Observed]
):
    for rank in ranks_of(MEASURED[name]):
        assert simulated[name, rank] == measured[name, rank]


@pytest.mark.parametrize("name", MEASURED | SIMULATED)
def test_the_formula_of_collectives_gives_every_call_and_byte(name: str, simulated: dict[tuple[str, int], Observed]):
    world_size, *_ = case = (MEASURED | SIMULATED)[name]
    recipe = task_of(case, 0).recipe
    layout = resolve_layout(recipe.layout, world_size)
    for rank in ranks_of(case):
        place = Place.of(layout, rank)
        total = Traffic()
        for part in step_traffic(recipe, layout, place).values():
            total.include(part)
        assert total == simulated[name, rank].traffic


@pytest.mark.parametrize("name", MEASURED | SIMULATED)
def test_estimated_memory_is_the_peak_within_bounds_and_resident_memory_to_the_byte(
    name: str, simulated: dict[tuple[str, int], Observed]
):
    world_size, *_ = case = (MEASURED | SIMULATED)[name]
    recipe = task_of(case, 0).recipe
    layout = resolve_layout(recipe.layout, world_size)
    for rank in ranks_of(case):
        place, observed = Place.of(layout, rank), simulated[name, rank]
        estimate = rank_memory(recipe, layout, place.pipeline)
        if not (rank and world_size == 3):  # the last of three ranks holds less than the first
            assert estimate.weights + estimate.optimizer == observed.resident
            assert 0.95 < estimate.total / observed.peak < 1.3


def test_a_deep_model_is_extrapolated_from_two_shallow_ones():
    recipe = small_recipe(model__num_layers=18, layout__tensor_parallel=2, layout__pipeline_parallel=2)
    found = simulated_cost(recipe, resolve_layout(recipe.layout, 8))
    assert found.layers == (2, 4)
    assert (found.calls, found.bytes) == (found.estimated_calls, found.estimated_bytes)
    assert 0.95 < found.estimated_peak / found.peak < 1.3


def test_every_pipeline_rank_has_its_layers_parameters_memory_and_exchanges():
    recipe = small_recipe(model__num_layers=4, model__tie_embeddings=False, layout__pipeline_parallel=2)
    layout = resolve_layout(recipe.layout, 4)
    cost = step_cost(recipe, layout)
    whole = step_cost(
        small_recipe(model__num_layers=4, model__tie_embeddings=False), resolve_layout(recipe_of({}, {}).layout, 1)
    )
    assert sum(rank.parameters for rank in cost.ranks) == whole.ranks[0].parameters
    assert [rank.layers for rank in cost.ranks] == [((0, 2),), ((2, 4),)]
    assert max(rank.memory.total for rank in cost.ranks) == estimate_memory(recipe, layout).total
    sent = {each.kind: each.calls for rank in cost.ranks for each in rank.exchanges if each.purpose == "pipeline"}
    assert sent == {"send": cost.micro_batches, "receive": cost.micro_batches}
    assert cost.bubble == pytest.approx(1 / (cost.micro_batches + 1))
    assert whole.ranks[0].exchanges == ()
