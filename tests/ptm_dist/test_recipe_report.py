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
    # Three groups of weights, gathered for the forward and the backward pass of each of four micro-batches.
    assert "  data parallel     all_gather 24 calls" in text
    assert values["cost"]["ranks"][0]["memory"]["total"] == report.memory.total
    assert values["simulated"] is None


def test_a_report_has_a_row_for_every_pipeline_rank():
    text = dry_run_report(small_recipe(layout__pipeline_parallel=2), 2).text()
    assert "micro-batches       8 a step on each rank, pipeline idle 11.1% of the time\n" in text
    assert "pipeline rank 0     layers 0: " in text
    assert "pipeline rank 1     layers 1: " in text
    assert text.count("shared weights") == 2


BERT = {
    "model__family": "bert",
    "objective__kind": "mlm_nsp",
    "objective__max_predictions": 2,
    "training__phases": [{"until_step": 9, "sequence_length": 8, "global_batch_size": 16}],
    "training__batch_ramp": {"start": 4, "increment": 4, "samples": 24},
    "data__max_epochs": 2.5,
}


def test_a_report_sums_over_phases_and_their_ramp():
    report = dry_run_report(small_recipe(**BERT), 2)
    # Batches of 4 until 8 samples are read, of 8 until 16, of 12 until 24; then five of 16, and the second phase.
    samples = [4 + 4 + 8 + 12 + 5 * 16, 8]
    assert [phase.samples for phase in report.phases] == samples
    assert [(phase.first_step, phase.end_step, phase.sequence_length) for phase in report.phases] == [
        (0, 9, 8),
        (9, 10, 16),
    ]
    assert report.samples == sum(samples)
    assert report.tokens == samples[0] * 8 + samples[1] * 16
    flops = sum(phase.tokens * phase.flops_per_token.full for phase in report.phases)
    # Per token rounded to whole operations, of which there are 100,000.
    assert report.flops.full == pytest.approx(flops, rel=1e-5)
    assert report.flops_per_token == report.phases[-1].flops_per_token


def test_all_phases_share_the_epochs_so_their_tokens_say_how_much_data_there_must_be():
    report = dry_run_report(small_recipe(**BERT), 2)
    # 108 samples of 8 tokens and 8 of 16 are 992 tokens, which 400 suffice for if they are read 2.5 times.
    assert (report.distinct_samples, report.distinct_tokens) == (25, 25 * 16)


def test_a_report_says_what_is_learnt_from_what_kind_of_data():
    report = dry_run_report(small_recipe(**BERT), 2)
    lines = dict(line.split("  ", 1) for line in report.text().splitlines() if not line.startswith(" "))
    table = {label: value.strip() for label, value in lines.items()}
    assert table["model"] == "bert"
    assert table["objective"] == (
        "mlm_nsp: masked tokens and next sentences (at most 1 of 8, then 2 of 16 tokens of a sample)"
    )
    assert table["phases"] == "8 tokens to step 9, then 16"
    assert table["batch size"] == "16, then 8 samples; grows from 4 over the first 24"
    assert table["training data"] == "at least 25 samples of 16 (400 tokens) in data, with sentences"
    assert table["tokenizer"] == "tokenizer, with ids for pad, classify, separator and mask"
    assert json.loads(json.dumps(report.as_dict()))["phases"][0]["predictions"] == 1


def test_a_causal_run_without_phases_has_rows_of_its_own_only():
    text = dry_run_report(small_recipe(model__family="gpt1"), 2).text()
    assert "phases" not in text
    assert "objective           causal: the next token\n" in text
    assert "batch size          8 samples\n" in text
    assert "(causal)" in text


def test_a_layout_that_does_not_fit_gets_no_report():
    with pytest.raises(LayoutError):
        dry_run_report(small_recipe(layout__tensor_parallel=2), 3)


def test_a_report_says_what_host_memory_checkpoints_and_snapshots_take():
    plain = dry_run_report(small_recipe(layout__zero_stage=3), 2)
    share = plain.parameters * 3 * 4 // 2
    assert (plain.host.staging, plain.host.total) == (share, share)
    assert f"host memory         about {share / 1024:.1f} KiB of each rank" in plain.text()
    kept = dry_run_report(small_recipe(layout__zero_stage=3, checkpoint__memory_every=5), 2)
    assert kept.as_dict()["host"]["total"] == 5 * share
    waiting = dry_run_report(small_recipe(checkpoint__asynchronous=False), 1)
    assert waiting.host.total == 0
    assert "host memory" not in waiting.text()
