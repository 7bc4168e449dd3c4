from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from ptm_dist.engines.native import NativeEngine
from ptm_dist.kernels.choice import Choice
from ptm_dist.models import LanguageModel, build_model
from ptm_dist.parallel.mesh import build_mesh
from ptm_dist.parallel.parallelize import Numbers, ParallelModel, plan_stages
from ptm_dist.parallel.recompute import apply_recompute
from ptm_dist.parallel.tensor import split_dimension
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import PipelineSchedule, Recipe
from ptm_dist.training.activations import ForwardPass
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
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {"model__family": "gpt1"},
    "gpt2": {},
    "gpt3": {"model__family": "gpt3", "model__attention_band": 5},
    "gpt2, documents apart": {"objective__document_attention": True},
    "gpt3, documents apart": {
        "model__family": "gpt3",
        "model__attention_band": 5,
        "objective__document_attention": True,
    },
    "bert": {"model__family": "bert", "objective__kind": "mlm_nsp"},
    "roberta": {"model__family": "roberta", "objective__kind": "mlm"},
    "albert": {"model__family": "albert", "objective__kind": "mlm_sop", "model__embedding_size": 12},
}
MASKED = 2
"""15% of the small recipe's 16 tokens."""
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def recipe_of(layout: dict[str, Any], **values: Any) -> Recipe:
    return small_recipe(**values, **{f"layout__{key}": value for key, value in layout.items()})


def estimate(recipe: Recipe, world_size: int) -> MemoryEstimate:
    return estimate_memory(recipe, resolve_layout(recipe.layout, world_size))


def chunk(tensor: torch.Tensor, parts: int, index: int, dim: int) -> torch.Tensor:
    chunks = tensor.chunk(parts, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


@pytest.mark.parametrize(("world_size", "layout"), LAYOUTS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "bert", "albert"])
def test_weights_are_those_of_the_fullest_rank(world_size: int, layout: dict[str, Any], tied: bool, family: str):
    recipe = recipe_of(layout, **UNEVEN, **FAMILIES[family], model__tie_embeddings=tied)
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


@pytest.mark.parametrize(
    ("precision", "family", "optimizer"),
    [
        ("fp32", "gpt2", "adamw"),
        ("bf16", "albert", "lamb"),
        ("fp64", "bert", "sgd"),
    ],
)
def test_the_engine_holds_what_was_estimated(precision: str, family: str, optimizer: str):
    world_size, layout = LAYOUTS[-1]
    values = {**UNEVEN, **FAMILIES[family], "optimizer__kind": optimizer}
    recipe = recipe_of(layout, **values, training__precision=precision)
    ranks = run_distributed(held, world_size, recipe, world_size)
    memory = estimate(recipe, world_size)
    assert max(weights for weights, _ in ranks) == memory.weights
    assert max(optimizer for _, optimizer in ranks) == memory.optimizer


def stored_by(
    model: LanguageModel, samples: int, length: int, documents_apart: bool, targets: torch.Tensor | None = None
) -> int:
    """Bytes that autograd keeps of a forward pass, weights apart, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stored: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage
        return tensor

    spec = model.spec
    ids = torch.randint(0, spec.embedding.vocab_size, (samples, length))
    segments = torch.zeros_like(ids) if spec.embedding.segments > 1 else None
    valid = None if spec.block.causal else torch.ones_like(ids, dtype=torch.bool)
    positions = None if spec.block.causal else torch.arange(samples * MASKED)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, segments, valid, positions, torch.zeros_like(ids) if documents_apart else None, targets=targets)
    return sum(storage.nbytes() for storage in stored.values())


def stored_bytes(recipe: Recipe) -> int:
    model = build_model(recipe.model).to(DTYPES[recipe.training.precision])
    if recipe.layout.recompute == "full":
        apply_recompute(model, recipe.layout.recompute)
    return stored_of(recipe, model)


def stored_of(recipe: Recipe, model: LanguageModel) -> int:
    samples, length = recipe.layout.micro_batch_size, recipe.data.sequence_length
    return stored_by(model, samples, length, recipe.objective.document_attention)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", DTYPES)
def test_activations_are_what_autograd_stores(family: str, precision: str):
    values = {**UNEVEN, **FAMILIES[family], "model__num_layers": 3}
    recipe = recipe_of({"micro_batch_size": 3}, **values, training__precision=precision)
    # On the CPU LayerNorm's statistics are in bfloat16 too; on CUDA, and in the formula, in float32.
    tolerance = 0.02 if precision == "bf16" else 0.0
    assert estimate(recipe, 1).activations == pytest.approx(stored_bytes(recipe), rel=tolerance)


@pytest.mark.parametrize("form", ["whole", "chunked"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_score_keeps_the_gradient_of_the_logits_or_of_the_matrix(family: str, precision: str, form: str):
    values = {**UNEVEN, **FAMILIES[family], "training__precision": precision, "kernels__linear_cross_entropy": form}
    recipe = recipe_of({"micro_batch_size": 3}, **values)
    samples, length = 3, recipe.data.sequence_length
    model = build_model(recipe.model).to(DTYPES[precision])
    model.choose(Choice.of(recipe.kernels.model_dump(), torch.device("cpu")))
    predictions = length if model.spec.block.causal else MASKED
    targets = torch.ones(samples * predictions, dtype=torch.int64)
    stored = stored_by(model, samples, length, recipe.objective.document_attention, targets)
    step = ForwardPass(recipe, resolve_layout(recipe.layout, 1), samples, length, predictions)
    assert stored == step.stored() + step.scored()


def stored_by_first_rank(recipes: list[Recipe], world_size: int) -> list[int]:
    stored = []
    for recipe in recipes:
        layout = resolve_layout(recipe.layout, world_size)
        mesh = build_mesh(layout, torch.device("cpu"))
        plan = plan_stages(recipe.model, layout)
        build = partial(build_model, recipe.model)
        parallel = ParallelModel(build, plan, layout, mesh, Numbers(torch.float32, None))
        parallel.materialize(torch.device("cpu"))
        stored.append(stored_of(recipe, parallel.stages[0].module))
    return stored


@pytest.mark.parametrize("layout", [{}, {"sequence_parallel": True}])
@pytest.mark.parametrize("sizes", [{}, {"model__hidden_size": 36, "model__num_heads": 3, "data__sequence_length": 15}])
def test_activations_are_what_the_fullest_of_two_tensor_parallel_ranks_stores(
    layout: dict[str, Any], sizes: dict[str, int]
):
    shares = {"micro_batch_size": 3, "tensor_parallel": 2, **layout}
    recipes = [recipe_of(shares, **UNEVEN, **values, **sizes) for values in FAMILIES.values()]
    first, _ = run_distributed(stored_by_first_rank, 2, recipes, 2)
    assert dict(zip(FAMILIES, first, strict=True)) == {
        family: estimate(recipe, 2).activations for family, recipe in zip(FAMILIES, recipes, strict=True)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_full_recomputation_stores_one_input_per_block_and_one_block_at_work(family: str):
    more, fewer, one = (
        small_recipe(**FAMILIES[family], model__num_layers=layers, layout__recompute="full") for layers in (12, 2, 1)
    )
    stream = 10 * 16 * 32 * 4
    assert estimate(more, 1).activations - estimate(fewer, 1).activations == stream
    assert stored_bytes(more) - stored_bytes(fewer) == stream
    without = small_recipe(**FAMILIES[family], model__num_layers=12)
    assert estimate(more, 1).activations < estimate(without, 1).activations / 4
    # A single block at work stores what it does without recomputation, and a mask of a byte for a position or a pair.
    mask = 16 if "objective__kind" in FAMILIES[family] else 16 * 16 if "documents" in family else 0
    alone = small_recipe(**FAMILIES[family], model__num_layers=1)
    assert estimate(one, 1).activations == estimate(alone, 1).activations + mask


def test_logits_of_masked_models_are_those_of_the_predicted_tokens():
    causal, masked = estimate(small_recipe(), 1), estimate(small_recipe(**FAMILIES["roberta"]), 1)
    assert masked.logits * 16 == causal.logits * MASKED
    limited = small_recipe(**FAMILIES["roberta"], objective__max_predictions=1)
    assert estimate(limited, 1).logits * 2 == masked.logits


def test_layers_that_share_a_block_are_gathered_with_all_the_rest():
    shared, own = (
        small_recipe(**FAMILIES["albert"], model__num_layers=8, model__layer_groups=groups, layout__zero_stage=3)
        for groups in (4, 8)
    )
    assert estimate(shared, 2).whole_weights == estimate(shared, 1).weights
    assert estimate(own, 2).whole_weights < estimate(own, 1).weights / 2


def test_memory_is_that_of_the_phase_which_needs_most():
    long = {**FAMILIES["roberta"], "layout__micro_batch_size": 2, "data__sequence_length": 16}
    phase = {"until_step": 5, "sequence_length": 8, "max_predictions": 8}
    one, two = small_recipe(**long), small_recipe(**long, training__phases=[phase])
    # Twice as many samples of half the length: the same number of tokens, 1 of 8 masked in place of 2 of 16.
    assert estimate(two, 1).total == estimate(one, 1).total
    # Four times as many of a quarter: 1 of 4 is masked, so the first phase has twice the logits.
    phase = {"until_step": 5, "sequence_length": 4}
    same = {**long, "layout__micro_batch_size": 8, "data__sequence_length": 4}
    assert estimate(small_recipe(**long, training__phases=[phase]), 1) == estimate(small_recipe(**same), 1)
    # The longer samples of the first phase need more.
    phase = {"until_step": 5, "sequence_length": 32}
    assert estimate(small_recipe(**long, training__phases=[phase]), 1) == estimate(
        small_recipe(**{**long, "data__sequence_length": 32}), 1
    )


def test_a_small_batch_of_a_ramp_may_make_the_largest_micro_batch():
    # 5 samples are cut into 3 and 2; the 4 at the start stay together.
    values = {"training__global_batch_size": 5, "layout__micro_batch_size": 4}
    ramp = {"start": 4, "increment": 1, "samples": 8}
    grown, growing = small_recipe(**values), small_recipe(**values, training__batch_ramp=ramp)
    assert estimate(growing, 1).activations * 3 == pytest.approx(estimate(grown, 1).activations * 4, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("schedule", [schedule for schedule in PipelineSchedule if schedule != "file"])
def test_more_micro_batches_of_one_size_never_need_less(schedule: PipelineSchedule, stage: int):
    # So that of all the steps of a ramp the longest tells.
    stages = 1 if schedule in ("gpipe", "1f1b") else 2
    layout = {
        "pipeline_parallel": 2,
        "pipeline_schedule": schedule,
        "pipeline_stages_per_rank": stages,
        "zero_stage": stage,
        "micro_batch_size": 1,
    }
    # Numbers of micro-batches that all schedules can do; each of two copies of the model takes half of a batch.
    totals = [
        estimate(recipe_of(layout, model__num_layers=4, training__global_batch_size=2 * count), 4).total
        for count in (4, 6, 8, 12, 24)
    ]
    assert totals == sorted(totals)
    ramp = {"start": 8, "increment": 4, "samples": 100}
    growing = recipe_of(layout, model__num_layers=4, training__global_batch_size=48, training__batch_ramp=ramp)
    assert estimate(growing, 4).total == totals[-1]


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
    at_once = estimate(recipe_of({"micro_batch_size": 2}, training__precision="bf16", training__global_batch_size=2), 1)
    assert at_once.whole_weights == 0
