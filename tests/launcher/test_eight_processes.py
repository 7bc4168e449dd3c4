"""From raw text by the commands: eight processes in three dimensions, then four, then one, on one curve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptm_dist.training.metrics import read_rows
from tests.launcher.test_families import prepare

THREE_WAYS = ("layout.tensor_parallel=2", "layout.sequence_parallel=true", "layout.pipeline_parallel=2")
SCHEDULES = {"gpt2": "zbv_zero_bubble", "bert": "1f1b"}
STEPS = ("training.steps=6", "training.precision=fp64", "model.num_layers=4", "training.global_batch_size=6")


def losses(run: Path) -> list[float]:
    rows = read_rows(run / "metrics.jsonl")
    return [loss for row in rows if row["kind"] == "train" for loss in row["losses"]]


def train(recipe: Path, run: Path, processes: int, *values: str) -> None:
    """`ptm train` as a user calls it, in processes of its own."""
    command = [sys.executable, "-m", "launcher", "train", str(recipe), *STEPS, f"run_dir={run}", *values]
    command += ["--nproc", str(processes)] if processes > 1 else []
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("family", SCHEDULES)
def test_eight_processes_then_four_then_one_stay_on_the_curve_of_one(family, ptm, prepared, tmp_path):
    recipe = prepare(ptm, prepared / "corpus.jsonl", tmp_path, family)
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    train(recipe, whole, 1)
    eight = (*THREE_WAYS, f"layout.pipeline_schedule={SCHEDULES[family]}")
    train(recipe, changing, 8, *eight, "layout.zero_stage=1", "launch.stop_at_step=1")
    train(recipe, changing, 8, *eight, "layout.zero_stage=3", "launch.stop_at_step=3")
    train(recipe, changing, 4, "layout.tensor_parallel=4", "launch.stop_at_step=4")
    train(recipe, changing, 1)
    # Float64: another order of sums, grown over six steps.
    assert len(losses(whole)) == 6
    assert losses(changing) == pytest.approx(losses(whole), rel=1e-10)
    layouts = [row["layout"] for row in read_rows(changing / "events.jsonl") if row["event"] == "start"]
    assert len(layouts) == 4
    assert all("pipeline parallel 2" in layout for layout in layouts[:2])
    run = [row for row in read_rows(changing / "metrics.jsonl") if row["kind"] == "run"]
    assert len({row["parameters"] for row in run}) == 1
