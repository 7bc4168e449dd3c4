"""Which layout a recipe gets on the processes that are left."""

from __future__ import annotations

import pytest

from launcher.elastic.layouts import fit
from ptm_dist.errors import LayoutError
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.training.memory import estimate_memory
from tests.ptm_dist.recipes import small_recipe


def test_all_processes_get_the_recipe_as_it_is():
    recipe = small_recipe(layout__tensor_parallel=2, layout__zero_stage=1, layout__micro_batch_size=1)
    found = fit(recipe, 8)
    assert (found.world_size, found.layout) == (8, "ZeRO-1 x4, tensor parallel 2")
    assert found.recipe == recipe


@pytest.mark.parametrize(("available", "copies"), [(12, 3), (11, 2), (8, 2), (7, 1), (4, 1)])
def test_ranks_that_share_a_model_stay_as_many_and_copies_go(available, copies):
    recipe = small_recipe(
        layout__tensor_parallel=2,
        layout__pipeline_parallel=2,
        layout__zero_stage=1,
        layout__micro_batch_size=1,
        training__global_batch_size=12,
    )
    found = fit(recipe, available)
    layout = found.recipe.layout
    assert found.world_size == 4 * copies  # the rest is to spare
    assert (layout.tensor_parallel, layout.pipeline_parallel) == (2, 2)
    assert (layout.zero_stage, layout.micro_batch_size) == (1, 1)
    assert found.recipe.model_copy(update={"layout": recipe.layout}) == recipe  # the global batch above all


def test_a_fixed_number_of_copies_goes_down_too():
    recipe = small_recipe(layout__data_parallel=4, layout__micro_batch_size=1)
    assert [fit(recipe, available).layout for available in (4, 3, 1)] == [
        "data parallel 4",
        "data parallel 3",
        "single process",
    ]


@pytest.mark.parametrize(("available", "replicas"), [(8, 4), (7, 1), (6, 3), (4, 4), (3, 3), (2, 2), (1, 1)])
def test_groups_of_shards_stay_as_many_as_divide_what_is_left(available, replicas):
    recipe = small_recipe(
        layout__zero_stage=3,
        layout__data_parallel_replicate=4,
        layout__micro_batch_size=1,
        training__global_batch_size=24,
    )
    found = fit(recipe, available)
    assert found.world_size == available
    assert found.recipe.layout.data_parallel_replicate == replicas


def test_too_few_for_one_copy_get_the_nearest_layout_that_works():
    recipe = small_recipe(layout__tensor_parallel=4, layout__micro_batch_size=1)
    found = fit(recipe, 2)
    assert found.world_size == 2
    assert found.layout == "tensor parallel 2"
    assert fit(recipe, 1).layout == "single process"


def test_a_layout_that_devices_have_no_memory_for_is_passed_over():
    recipe = small_recipe(layout__zero_stage=3, layout__micro_batch_size=1, model__hidden_size=256)
    shared = estimate_memory(recipe, resolve_layout(recipe.layout, 3)).total
    assert fit(recipe, 3, shared).layout == "ZeRO-3 x3"
    found = fit(recipe, 3, shared - 1)
    assert found.world_size == 3
    assert found.layout != "ZeRO-3 x3"
    assert estimate_memory(found.recipe, resolve_layout(found.recipe.layout, 3)).total < shared


def test_no_process_is_left_out_only_because_the_nearest_layouts_need_too_much_memory():
    recipe = small_recipe(layout__zero_stage=3, layout__micro_batch_size=1, model__hidden_size=256)
    found = fit(recipe, 4, 12_000_000)
    assert found.world_size == 4
    assert estimate_memory(found.recipe, resolve_layout(found.recipe.layout, 4)).total <= 12_000_000


def test_a_run_that_fits_into_no_memory_says_what_would_help():
    recipe = small_recipe(layout__zero_stage=3, layout__micro_batch_size=1, model__hidden_size=256)
    with pytest.raises(LayoutError) as caught:
        fit(recipe, 2, 1 << 20)
    assert str(caught.value).startswith("no layout of small works on 2 processes within 0.0 GiB each; bring more")


def test_keys_that_were_written_somewhere_still_know_where(tmp_path):
    from ptm_dist.recipe.loading import load_recipe
    from tests.launcher.conftest import RECIPE

    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    found = fit(recipe, 1)
    assert found.recipe.places == recipe.places
    assert found.recipe.places["training.steps"].endswith("recipe.yaml:8")
