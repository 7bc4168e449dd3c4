"""Layouts that cannot work: what is said of them, and what is offered in their place."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from ptm_dist.errors import LayoutError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.layout import divisors, resolve_layout
from ptm_dist.recipe.layout_checks import fit_problems
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.nearest import nearest_layouts
from ptm_dist.recipe.schema import LayoutSection, PipelineSchedule, Recipe
from tests.parity.cells import Cell, Problem
from tests.parity.layouts import EVERY, SCHEDULE_FILE, Setting
from tests.ptm_dist.recipes import small_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
CUT_BY_HAND = {"layout__pipeline_parallel": 2, "layout__pipeline_split": (1,)}
NONE = "no layout works on {} as long as the rest of the recipe stays as it is"


def refusal(recipe: Recipe, world_size: int) -> str | None:
    """The message, or None if the layout works."""
    try:
        check_recipe(recipe, world_size, None)
    except LayoutError as error:
        return str(error)
    return None


def works(recipe: Recipe, layout: LayoutSection, world_size: int) -> bool:
    return not list(fit_problems(recipe, layout, world_size))


def changed(before: LayoutSection, after: LayoutSection) -> dict[str, Any]:
    return {
        key: getattr(after, key) for key in LayoutSection.model_fields if getattr(after, key) != getattr(before, key)
    }


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_no_layout_of_the_parity_table_is_refused(setting: Setting):
    layers = resolve_layout(LayoutSection(**setting.layout), setting.world_size).num_stages
    cell = Cell(Problem(num_layers=max(6, layers)), setting.world_size, setting.layout, setting.accumulation)
    assert refusal(cell.recipe(), setting.world_size) is None


@pytest.mark.parametrize(
    ("world_size", "values", "nearest"),
    [
        (4, {"layout__tensor_parallel": 3}, {"tensor_parallel": 4}),
        (4, {"layout__tensor_parallel": 3, "model__num_heads": 2}, {"tensor_parallel": 2}),
        (8, {"layout__context_parallel": 3}, {"context_parallel": 4}),
        (6, {"layout__data_parallel": 4}, {"data_parallel": 6}),
        (6, {"layout__data_parallel": 3}, {"tensor_parallel": 2}),
        (4, {"layout__pipeline_parallel": 4}, {"pipeline_parallel": 2}),
        (32, {}, {"tensor_parallel": 4}),
        (4, {"layout__data_parallel_replicate": 3, "layout__zero_stage": 3}, {"data_parallel_replicate": 4}),
        (4, {"layout__sequence_parallel": True}, {"sequence_parallel": False}),
        (4, {"layout__recompute_every": 2}, {"recompute_every": 1}),
        (2, {"engine": "deepspeed", "layout__zero_stage": 2, "layout__tensor_parallel": 2}, {"tensor_parallel": 1}),
        (4, {**CUT_BY_HAND, "layout__tensor_parallel": 2, "layout__pipeline_parallel": 4}, {"pipeline_parallel": 2}),
        (4, {**CUT_BY_HAND, "layout__pipeline_parallel": 1}, {"pipeline_split": None}),
    ],
)
def test_the_nearest_layout_changes_what_is_wrong_and_no_more(
    world_size: int, values: dict[str, Any], nearest: dict[str, Any]
):
    recipe = small_recipe(**values)
    (layout,) = nearest_layouts(recipe, world_size)
    assert changed(recipe.layout, layout) == nearest
    assert works(recipe, layout, world_size)


def test_several_layouts_are_offered_nearest_first():
    recipe = small_recipe(layout__tensor_parallel=3)
    offered = nearest_layouts(recipe, 8, count=4)
    assert [changed(recipe.layout, layout) for layout in offered[:2]] == [
        {"tensor_parallel": 4},
        {"tensor_parallel": 2},
    ]
    assert len(offered) == 4
    assert all(works(recipe, layout, 8) for layout in offered)


def test_a_layout_that_works_is_its_own_nearest():
    recipe = small_recipe(layout__tensor_parallel=2, layout__sequence_parallel=True)
    assert nearest_layouts(recipe, 4) == [recipe.layout]


@pytest.mark.parametrize("world_size", [1_000, 10_080, 16_384])
def test_a_nearest_layout_is_found_for_thousands_of_processes(world_size: int):
    overrides = ["layout.tensor_parallel=3", "layout.pipeline_parallel=7", "layout.pipeline_schedule=dualpipev"]
    recipe = load_recipe(CONFIGS / "gpt" / "gpt3-175b.yaml", overrides)
    (layout,) = nearest_layouts(recipe, world_size)
    assert set(changed(recipe.layout, layout)) <= {"tensor_parallel", "pipeline_parallel"}
    assert works(recipe, layout, world_size)


def test_the_message_says_when_no_layout_works():
    recipe = small_recipe(engine="deepspeed", optimizer__kind="lamb", layout__tensor_parallel=2)
    message = refusal(recipe, 4)
    assert message is not None and message.splitlines()[-1] == NONE.format("4 processes")
    assert nearest_layouts(recipe, 4) == []


def test_a_table_of_a_schedule_must_have_room_for_the_largest_step_of_the_run():
    table = {
        "layout__pipeline_parallel": 2,
        "layout__pipeline_schedule": "file",
        "layout__pipeline_schedule_file": SCHEDULE_FILE,
    }
    ramp = {"start": 1, "increment": 1, "samples": 20}
    assert refusal(small_recipe(**table, training__global_batch_size=6, training__batch_ramp=ramp), 2) is None
    phase = {"until_step": 3, "sequence_length": 16, "global_batch_size": 7}
    message = refusal(small_recipe(**table, training__global_batch_size=4, training__phases=[phase]), 2)
    assert message is not None
    assert "has 6 micro-batches, a step of this recipe 7" in message
    assert message.endswith("nearest layout that works on 2 processes: layout.micro_batch_size=2 (data_parallel 1)")


def test_a_message_names_the_files_that_its_values_come_from(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(
        "model: {vocab_size: 128, hidden_size: 32, num_layers: 2, num_heads: 4}\n"
        "data: {path: data, tokenizer: tokenizer,\n"
        "  sequence_length: 16}\n"
        "optimizer: {learning_rate: 0.001}\n"
        "training: {steps: 10, global_batch_size: 8}\n"
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\nname: run\nlayout:\n  recompute_every: 2\n")
    overrides = ["layout.context_parallel=32", "training.precision=fp16"]
    recipe = load_recipe(tmp_path / "run.yaml", overrides)
    with pytest.raises(Exception) as caught:
        check_recipe(recipe, 32, None)
    assert str(caught.value).splitlines() == [
        "training.precision=fp16 (override) needs a loss scale, which engine=native does not have; use "
        "training.precision=bf16, or engine=deepspeed",
        f"layout.recompute_every=2 ({tmp_path}/run.yaml:4) has no effect with layout.recompute=none; leave it out, or "
        "use layout.recompute=full or selective",
        "layout.context_parallel=32 (override) leaves ranks without a position of data.sequence_length=16 "
        f"({tmp_path}/base.yaml:3); use layout.context_parallel=16 or less",
        "nearest layout that works on 32 processes: layout.context_parallel=16 layout.recompute_every=1 "
        "(data_parallel 2)",
    ]


def test_recipes_are_equal_wherever_they_were_written(tmp_path: Path):
    text = (CONFIGS / "demo" / "gpt.yaml").read_text()
    for name in ("one.yaml", "other.yaml"):
        (tmp_path / name).write_text(text if name == "one.yaml" else f"\n{text}")
    one, other = (load_recipe(tmp_path / name) for name in ("one.yaml", "other.yaml"))
    assert one == other and dict(one.places) != dict(other.places)
    assert one != load_recipe(tmp_path / "one.yaml", ["layout.micro_batch_size=1"])


OPTIONS: dict[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "data_parallel_replicate": (1, 2, 3, 4),
    "sequence_parallel": (False, True),
    "pipeline_schedule": tuple(kind for kind in PipelineSchedule if kind is not PipelineSchedule.FILE),
    "pipeline_stages_per_rank": (None, 1, 2, 3),
    "pipeline_split": (None, (1,), (2, 4)),
    "context_method": ("ring", "ulysses"),
    "recompute": ("none", "selective", "full"),
    "recompute_every": (1, 2),
    "offload": ("none", "optimizer", "parameters"),
    "offload_activations": (False, True),
    "compile": (False, True),
}
SIZES = ("tensor_parallel", "pipeline_parallel", "context_parallel")


def random_case(rng: random.Random) -> tuple[Recipe, int]:
    """A recipe whose layout has a few mistakes, mostly, and a number of processes."""
    layout: dict[str, Any] = {key: rng.choice((1, 1, 1, 1, 2, 2, 3, 8)) for key in SIZES}
    layout["data_parallel"] = rng.choice(("auto", "auto", "auto", "auto", 1, 4))
    layout |= {key: rng.choice(values) if rng.random() < 0.15 else values[0] for key, values in OPTIONS.items()}
    values = {
        "engine": rng.choice(("native", "native", "deepspeed", "megatron")),
        "model__num_layers": rng.choice((2, 6, 12)),
        "data__sequence_length": rng.choice((3, 16, 16)),
        "training__global_batch_size": rng.choice((2, 8, 64, 64)),
        "optimizer__kind": rng.choice(("adamw", "adamw", "adamw", "adamw", "adamw", "lamb")),
    }
    recipe = small_recipe(**values, layout=LayoutSection.model_validate(layout))
    return recipe, rng.choice((1, 2, 4, 4, 6, 8, 8, 12, 16, 36))


def neighbours(recipe: Recipe, world_size: int, changes: int) -> Iterator[LayoutSection]:
    """All layouts that differ in so many keys, sizes among the divisors of the world."""
    wanted = recipe.layout
    options = {**OPTIONS, **dict.fromkeys(SIZES, tuple(divisors(world_size)))}
    if wanted.data_parallel != "auto":
        options["data_parallel"] = tuple(divisors(world_size))
    for keys in combinations(options, changes):
        others = [[value for value in options[key] if value != getattr(wanted, key)] for key in keys]
        for values in product(*others):
            yield wanted.model_copy(update=dict(zip(keys, values, strict=True)))


@pytest.mark.parametrize("seed", range(8))
def test_a_random_layout_works_or_has_a_nearest_one_or_the_message_says_that_none_exists(seed: int):
    rng = random.Random(seed)
    for _ in range(40):
        recipe, world_size = random_case(rng)
        message, nearest = refusal(recipe, world_size), nearest_layouts(recipe, world_size)
        if message is None:
            assert nearest == [recipe.layout]
            continue
        most = 2
        if nearest:
            most = min(most, len(changed(recipe.layout, nearest[0])) - 1)
            assert refusal(recipe.model_copy(update={"layout": nearest[0]}), world_size) is None
            assert re.search(r"\nnearest layout that works on \d+ process(es)?: (layout\.\w+=\S+ )+\(", message)
        else:
            assert message.splitlines()[-1].startswith("no layout works on ")
        heads = (
            recipe.model.num_heads if nearest and nearest[0].tensor_parallel <= recipe.model.num_heads else world_size
        )
        nearer = (layout for changes in range(most + 1) for layout in neighbours(recipe, world_size, changes))
        better = [layout for layout in nearer if layout.tensor_parallel <= heads and works(recipe, layout, world_size)]
        assert not better, (changed(recipe.layout, better[0]), nearest and changed(recipe.layout, nearest[0]), message)
