"""Whole runs with engine=deepspeed."""

from __future__ import annotations

from typing import Any

import pytest

from ptm_dist.recipe.schema import Recipe
from tests.ptm_dist.runs import events, losses, make_recipe, run_alone, run_processes, validation_losses, write_data


def recipe_for(folder, run: str, engine: str, **sections: dict[str, Any]) -> Recipe:
    values = make_recipe(folder, run, **sections).model_dump(mode="json")
    values["training"]["precision"] = "fp32"
    return Recipe.model_validate(values | {"engine": engine})


def test_a_run_changes_its_engine_at_checkpoints_and_stays_on_the_curve_of_the_native_one(tmp_path):
    write_data(tmp_path / "data")
    single = recipe_for(tmp_path, "single", "native")
    run_alone(single)
    zero = {"zero_stage": 2, "micro_batch_size": 2}
    first = recipe_for(tmp_path, "moving", "native", launch={"stop_at_step": 4}, layout=zero)
    run_alone(first)
    second = recipe_for(tmp_path, "moving", "deepspeed", launch={"stop_at_step": 9}, layout=zero)
    assert run_processes(second, 2) == [0, 0]
    last = recipe_for(tmp_path, "moving", "native")
    run_alone(last)
    assert losses(last) == pytest.approx(losses(single), rel=1e-6)
    assert list(validation_losses(last)) == [4, 8, 12]
    assert validation_losses(last) == pytest.approx(validation_losses(single), rel=1e-6)
    assert [row["step"] for row in events(last, "start")] == [0, 4, 9]
