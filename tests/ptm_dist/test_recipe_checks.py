from __future__ import annotations

from typing import Any

import pytest

from ptm_dist.errors import LayoutError, RecipeError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.schema import LayoutSection
from tests.ptm_dist.recipes import small_recipe


@pytest.mark.parametrize(
    ("world_size", "values", "expected"),
    [
        (4, {"layout__tensor_parallel": 3}, "does not divide the 4 processes of this run; use 1, 2 or 4"),
        (
            8,
            {"layout__tensor_parallel": 3, "layout__context_parallel": 2},
            "layout.tensor_parallel=3 x layout.context_parallel=2 does not divide the 8 processes of this run; use a "
            "product of 1, 2, 4 or 8, or start a multiple of 6",
        ),
        (
            4,
            {"layout__data_parallel": 3},
            "layout.data_parallel=3 x layout.tensor_parallel=1 does not make the 4 processes of this run; "
            "use layout.data_parallel=4 (or auto), or start 3 processes",
        ),
        (4, {"layout__data_parallel_replicate": 2}, "needs layout.zero_stage 1, 2 or 3"),
        (
            4,
            {"layout__data_parallel_replicate": 3, "layout__zero_stage": 2},
            "layout.data_parallel_replicate=3 does not divide the 4 data-parallel ranks; use 1, 2 or 4",
        ),
        (
            2,
            {"layout__sequence_parallel": True},
            "has no effect with layout.tensor_parallel=1; leave it out, or use layout.tensor_parallel=2 or more",
        ),
        (16, {}, "gives some of the 16 data-parallel ranks no sample"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_one_that_does(
    world_size: int, values: dict[str, Any], expected: str
):
    with pytest.raises(LayoutError) as caught:
        check_recipe(small_recipe(**values), world_size, 128)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model__num_heads": 5}, "model.num_heads=5 does not divide model.hidden_size=32; use 1, 2, 4, 8, 16 or 32"),
        ({"data__sequence_length": 65}, "data.sequence_length=65 is longer than model.max_positions=64"),
        ({"model__vocab_size": 127}, "tokenizer (128); use model.vocab_size=128 or more"),
        ({"schedule__warmup_steps": 11}, "schedule.warmup_steps=11 is more than training.steps=10"),
        (
            {"schedule__warmup_steps": 6, "schedule__decay_steps": 5},
            "schedule.warmup_steps=6 is more than schedule.decay_steps=5",
        ),
        ({"optimizer__betas": (0.9, 1.0)}, "optimizer.betas[1]=1"),
        (
            {"training__precision": "fp16"},
            "training.precision=fp16 needs a loss scale, which engine=native does not have; use "
            "training.precision=bf16, or engine=deepspeed",
        ),
        (
            {"deepspeed__offload_optimizer": "cpu"},
            "deepspeed.offload_optimizer=cpu has no effect with engine=native; leave it out, or use engine=deepspeed",
        ),
        (
            {"deepspeed__offload_parameters": "cpu", "engine": "megatron"},
            "deepspeed.offload_parameters=cpu has no effect with engine=megatron; leave it out, or use "
            "engine=deepspeed",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], expected: str):
    with pytest.raises(RecipeError) as caught:
        check_recipe(small_recipe(**values), 1, 128)
    assert not isinstance(caught.value, LayoutError)
    assert expected in str(caught.value)


def test_all_contradictions_are_told_at_once():
    recipe = small_recipe(
        model__num_heads=5, schedule__warmup_steps=11, layout__tensor_parallel=3, layout__context_method="ulysses"
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, 4, 500)
    lines = str(caught.value).splitlines()
    named = ("model.num_heads", "model.vocab_size", "schedule.warmup_steps", "layout.tensor_parallel")
    assert [line.split("=")[0] for line in lines[:-1]] == [*named, "layout.context_method"]
    assert lines[-1].startswith("nearest layout that works on 4 processes: ")


def test_a_recipe_without_a_tokenizer_to_compare_with_passes():
    check_recipe(small_recipe(), 4, None)


@pytest.mark.parametrize(
    ("world_size", "values", "numbers", "words"),
    [
        (1, {}, (1, 1, 1), "single process"),
        (4, {}, (4, 4, 1), "data parallel 4"),
        (4, {"zero_stage": 1}, (4, 1, 4), "ZeRO-1 x4"),
        (8, {"zero_stage": 3, "data_parallel_replicate": 2}, (8, 2, 4), "ZeRO-3 x4, 2 copies (HSDP)"),
        (2, {"tensor_parallel": 2}, (1, 1, 1), "tensor parallel 2"),
        (
            4,
            {"zero_stage": 3, "tensor_parallel": 2, "sequence_parallel": True, "data_parallel": 2},
            (2, 1, 2),
            "ZeRO-3 x2, tensor parallel 2 (sequence parallel)",
        ),
    ],
)
def test_a_layout_is_resolved_and_described(
    world_size: int, values: dict[str, Any], numbers: tuple[int, int, int], words: str
):
    layout = resolve_layout(LayoutSection(**values), world_size)
    assert (layout.data_parallel, layout.replicate, layout.shard) == numbers
    assert layout.world_size == world_size
    assert layout.describe() == words
    assert isinstance(layout, ResolvedLayout)


def test_a_layout_of_another_world_is_not_resolved():
    with pytest.raises(LayoutError, match="start a multiple of 3"):
        resolve_layout(LayoutSection(tensor_parallel=3), 4)
