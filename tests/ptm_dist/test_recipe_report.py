from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptm_dist.errors import LayoutError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.report import dry_run_report
from tests.ptm_dist.recipes import small_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = {"124m": 124_439_808, "355m": 354_823_168, "774m": 774_030_080, "1558m": 1_557_611_200}


@pytest.mark.parametrize(("size", "parameters"), PUBLISHED.items())
def test_gpt2_recipes_have_the_published_number_of_parameters(size: str, parameters: int):
    recipe = load_recipe(CONFIGS / "gpt" / f"gpt2-{size}.yaml")
    check_recipe(recipe, 8, 50257)
    report = dry_run_report(recipe, 8)
    assert report.parameters == parameters
    assert report.tokens == 600_000 * 512 * 1024


def test_the_demo_recipe_fits_two_processes_in_both_of_its_layouts():
    for overrides in (["layout.zero_stage=3"], ["layout.tensor_parallel=2"]):
        check_recipe(load_recipe(CONFIGS / "demo" / "gpt.yaml", overrides), 2, 4096)


def test_a_report_counts_steps_samples_tokens_and_the_data_they_need():
    report = dry_run_report(small_recipe(data__max_epochs=3.0), 2)
    assert (report.steps, report.samples, report.tokens) == (10, 80, 1280)
    assert (report.distinct_samples, report.distinct_tokens) == (27, 432)
    assert report.flops.full == 1280 * report.flops_per_token.full


def test_a_report_reads_as_a_table_and_as_json():
    report = dry_run_report(small_recipe(layout__zero_stage=3), 2)
    text = report.text()
    assert "layout              ZeRO-3 x2 on 2 processes" in text
    assert "tokens              1,280" in text
    values = json.loads(json.dumps(report.as_dict()))
    assert values["memory"]["total"] == report.memory.total
    assert values["layout"]["description"] == "ZeRO-3 x2"


def test_a_layout_that_does_not_fit_gets_no_report():
    with pytest.raises(LayoutError):
        dry_run_report(small_recipe(layout__tensor_parallel=2), 3)
