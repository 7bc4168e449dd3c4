from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch

from ptm_dist.checkpoint import latest, list_checkpoints
from ptm_dist.errors import CheckpointError, RunDirectoryError
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.run_directory import RunDirectory
from ptm_dist.training.trainer import DivergenceError
from tests.ptm_dist.runs import (
    events,
    kill_when,
    losses,
    make_recipe,
    run_alone,
    run_processes,
    start_run,
    validation_losses,
    weights,
    write_data,
)

ZERO3 = {"zero_stage": 3, "micro_batch_size": 2}
TENSOR = {"tensor_parallel": 2, "sequence_parallel": True, "micro_batch_size": 3}


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_all_its_steps_validations_events_and_checkpoints(folder):
    recipe = make_recipe(folder, "a")
    summary = run_alone(recipe)
    assert summary.is_finished
    assert summary.stop_reason is None
    assert len(losses(recipe)) == 12
    assert list(validation_losses(recipe)) == [4, 8, 12]
    assert summary.validation_loss == validation_losses(recipe)[12]
    assert summary.loss == losses(recipe)[-1]
    assert losses(recipe)[-1] < losses(recipe)[0]
    assert [row["step"] for row in events(recipe, "checkpoint")] == [3, 6, 9, 12]
    assert [info.step for info in list_checkpoints(recipe.directory / "checkpoints")] == [9, 12]
    assert summary.checkpoint == latest(recipe.directory / "checkpoints").path
    assert len(events(recipe, "finish")) == 1


def test_the_rows_say_how_fast_and_how_well_used(folder):
    recipe = make_recipe(folder, "a")
    run_alone(recipe)
    rows = read_rows(recipe.directory / "metrics.jsonl")
    header, train = rows[0], [row for row in rows if row["kind"] == "train"]
    assert (header["kind"], header["layout"], header["world_size"]) == ("run", "single process", 1)
    assert header["peak_flops_per_second"] > 1e9
    assert "measured" in header["peak_source"]
    assert [row["step"] for row in train] == [2, 3, 4, 6, 8, 9, 10, 12]
    for row in train:
        assert row["tokens"] == row["samples"] * 16 == row["step"] * 6 * 16
        assert row["loss"] == pytest.approx(sum(row["losses"]) / len(row["losses"]))
        assert row["tokens_per_second"] == pytest.approx(96 / row["step_seconds"])
        assert 0 < row["mfu_causal"] < row["mfu_full"]
        assert row["peak_memory_bytes"] > 1 << 20
        assert row["data_wait_seconds"] < row["step_seconds"] * len(row["losses"])
    waited = {row["step"] for row in train if row["checkpoint_seconds"] > 0}
    assert waited >= {4, 8, 10}  # behind the saves; other rows hold what it took to commit them


def test_a_finished_run_has_nothing_more_to_do(folder):
    recipe = make_recipe(folder, "a")
    first = run_alone(recipe)
    before = losses(recipe)
    again = run_alone(recipe)
    assert (again.start_step, again.step, again.is_finished) == (12, 12, True)
    assert (again.loss, again.validation_loss) == (first.loss, first.validation_loss)
    assert losses(recipe) == before


def test_stopping_and_going_on_gives_the_same_bits_as_running_through(folder):
    through = make_recipe(folder, "through")
    run_alone(through)
    stopped = make_recipe(folder, "stopped", launch={"stop_at_step": 5})
    summary = run_alone(stopped)
    assert (summary.step, summary.stop_reason) == (5, "launch.stop_at_step=5")
    going_on = make_recipe(folder, "stopped")
    summary = run_alone(going_on)
    assert (summary.start_step, summary.step) == (5, 12)
    assert losses(going_on) == losses(through)
    assert validation_losses(going_on) == validation_losses(through)
    assert same(weights(going_on), weights(through))


def test_kill_9_at_random_moments_and_the_same_command_end_with_the_same_bits(folder):
    through = make_recipe(folder, "through", layout=ZERO3)
    assert run_processes(through, 2) == [0, 0]
    recipe = make_recipe(folder, "killed", layout=ZERO3)
    rng, kills = random.Random(5), 0
    for round_number in range(4):
        rows, delay = 1 + 4 * round_number, rng.uniform(0.0, 0.05)
        processes = start_run(recipe, 2)
        kills += kill_when(
            processes,
            lambda rows=rows, delay=delay: (
                len(read_rows(recipe.directory / "metrics.jsonl")) > rows and time.sleep(delay) is None
            ),
        )
    assert kills >= 2
    assert run_processes(recipe, 2) == [0, 0]
    assert losses(recipe) == losses(through)
    assert validation_losses(recipe) == validation_losses(through)
    assert same(weights(recipe), weights(through))


def test_one_run_over_three_layouts_stays_on_the_curve_of_a_single_process(folder):
    single = make_recipe(folder, "single")
    run_alone(single)
    name = "moving"
    assert run_processes(make_recipe(folder, name, layout=ZERO3, launch={"stop_at_step": 4}), 2) == [0, 0]
    assert run_processes(make_recipe(folder, name, layout=TENSOR, launch={"stop_at_step": 9}), 2) == [0, 0]
    moving = make_recipe(folder, name)
    run_alone(moving)
    assert losses(moving) == pytest.approx(losses(single), rel=1e-12)
    assert validation_losses(moving) == pytest.approx(validation_losses(single), rel=1e-12)
    changes = [(row["step"], row["after"]) for row in events(moving, "layout_change")]
    assert changes == [(4, "tensor parallel 2 (sequence parallel)"), (9, "single process")]


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(folder):
    recipe = make_recipe(folder, "a", training={"steps": 100_000}, data={"max_epochs": 1e9})
    processes = start_run(recipe, 2)
    while len(read_rows(recipe.directory / "metrics.jsonl")) < 3:
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (event,) = events(recipe, "signal")
    assert event["signal"] == "SIGTERM"
    assert latest(recipe.directory / "checkpoints").step == event["step"] == len(losses(recipe))


def test_a_loss_that_is_no_number_stops_at_once_and_is_not_saved(folder):
    recipe = make_recipe(
        folder, "a", optimizer={"learning_rate": 1e300}, schedule={"warmup_steps": 0, "kind": "constant"}
    )
    with pytest.raises(DivergenceError, match=r"step 2: the loss is nan"):
        run_alone(recipe)
    assert list_checkpoints(recipe.directory / "checkpoints") == []
    assert "step 2" in events(recipe, "failure")[0]["error"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder, capsys):
    through = make_recipe(folder, "through")
    run_alone(through)
    run_alone(make_recipe(folder, "a", launch={"stop_at_step": 8}))
    recipe = make_recipe(folder, "a")
    path = latest(recipe.directory / "checkpoints").path / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[100_000 % len(content)] ^= 1
    path.write_bytes(content)
    summary = run_alone(recipe)
    assert summary.start_step == 6
    assert "WARNING" in capsys.readouterr().out
    assert "step-00000008" in events(recipe, "damaged_checkpoint")[0]["path"]
    assert losses(recipe) == losses(through)
    assert same(weights(recipe), weights(through))


def test_a_directory_of_another_recipe_is_refused_with_the_keys_that_differ(folder):
    run_alone(make_recipe(folder, "a"))
    with pytest.raises(RunDirectoryError, match=r"optimizer\.learning_rate: 0\.003 -> 0\.001"):
        run_alone(make_recipe(folder, "a", optimizer={"learning_rate": 1e-3}))


def test_a_directory_in_use_by_a_live_run_is_refused(folder):
    recipe = make_recipe(folder, "a", training={"steps": 100_000}, data={"max_epochs": 1e9})
    (process,) = start_run(recipe, 1)
    while not read_rows(recipe.directory / "metrics.jsonl"):
        time.sleep(0.01)
    with pytest.raises(RunDirectoryError, match=rf"in use by process {process.pid}"):
        run_alone(recipe)
    process.kill()
    process.join()
    with RunDirectory(recipe.directory).locked():
        pass


def test_a_fresh_directory_goes_on_from_another_runs_checkpoint_with_another_learning_rate(folder):
    first = make_recipe(folder, "first", launch={"stop_at_step": 6})
    run_alone(first)
    second = make_recipe(
        folder,
        "second",
        optimizer={"learning_rate": 1e-3},
        checkpoint={"load_from": str(first.directory)},
    )
    summary = run_alone(second)
    assert (summary.start_step, summary.step) == (6, 12)
    assert run_alone(second).start_step == 12


def test_a_checkpoint_of_another_order_of_samples_is_refused(folder):
    first = make_recipe(folder, "first")
    run_alone(first)
    second = make_recipe(
        folder, "second", training={"seed": 8, "steps": 20}, checkpoint={"load_from": str(first.directory)}
    )
    with pytest.raises(CheckpointError, match=r"training\.seed: 7 -> 8"):
        run_alone(second)


def test_the_best_validation_loss_is_kept_besides_the_newest(folder):
    recipe = make_recipe(
        folder,
        "a",
        evaluation={"every": 2},
        checkpoint={"every": 0, "save_best": True, "keep_last": 1},
        schedule={"warmup_steps": 0, "kind": "constant"},
        optimizer={"learning_rate": 3e-2},
        training={"steps": 40},
    )
    run_alone(recipe)
    by_step = validation_losses(recipe)
    best_step = min(by_step, key=by_step.get)
    assert best_step < 40
    assert [info.step for info in list_checkpoints(recipe.directory / "checkpoints")] == [best_step, 40]
