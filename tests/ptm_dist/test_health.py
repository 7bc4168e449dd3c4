"""Runs with a step that is no good: what they do about it, and that they end with the weights that they say."""

from __future__ import annotations

import json
import random
import time

import pytest
import torch

from ptm_dist.checkpoint import latest, list_checkpoints
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.rollback import ROLLBACKS_FILE
from ptm_dist.training.trainer import DivergenceError
from tests.ptm_dist.health_runs import (
    RARE_STEP,
    STEPS,
    health_recipe,
    plain_weights,
    poisoned,
    saved_weights,
    start_poisoned,
    write_texts,
)
from tests.ptm_dist.runs import events, kill_when, losses, run_alone, run_processes, start_run

SKIP, BACK = {"on_nonfinite": "skip"}, {"on_spike": "rollback"}
TAKEN_BACK = range(RARE_STEP - 3, RARE_STEP + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("health")
    write_texts(path / "data")
    return path


@pytest.fixture(scope="module")
def rolled_back(folder):
    recipe = health_recipe(folder, "rolled-back", BACK, checkpoint={"every": 5})
    run_alone(recipe)
    return recipe


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def end(processes):
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_a_gradient_that_is_no_number_is_left_out_with_its_step_counted(folder):
    recipe = health_recipe(folder, "skipped", SKIP)
    with poisoned(7):
        summary = run_alone(recipe)
    assert summary.is_finished
    assert same(saved_weights(recipe), plain_weights(recipe, {7}))
    (event,) = events(recipe, "skip")
    assert (event["step"], event["reason"]) == (7, f"the loss is {losses(recipe)[6]} and the gradient norm nan")
    manifest = latest(recipe.directory / "checkpoints").manifest
    assert (manifest.step, manifest.samples, manifest.updates, manifest.skipped) == (20, 120, 19, ((7, 7),))
    rows = [row for row in read_rows(recipe.directory / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows if row["skipped"]] == [8]
    assert all(row["grad_norm"] > 0 for row in rows)


def test_a_run_that_is_cut_off_after_a_skip_ends_with_the_same_bits(folder):
    recipe = health_recipe(folder, "cut-off", SKIP, launch={"stop_at_step": 9})
    with poisoned(7):
        run_alone(recipe)
    recipe = health_recipe(folder, "cut-off", SKIP)
    run_alone(recipe)
    assert same(saved_weights(recipe), plain_weights(recipe, {7}))
    assert latest(recipe.directory / "checkpoints").manifest.skipped == ((7, 7),)


def test_two_processes_of_which_one_is_broken_leave_out_the_same_update_and_survive_a_kill(folder):
    layout = {"zero_stage": 3, "micro_batch_size": 2}
    recipe = health_recipe(folder, "two", SKIP, layout=layout)
    kill_when(start_poisoned(recipe, 2, 7), lambda: len(losses(recipe)) >= 9)
    assert end(start_poisoned(recipe, 2, 7)) == [0, 0]
    alone = plain_weights(recipe, {7})
    together = saved_weights(recipe)
    assert all(torch.allclose(together[name], alone[name], rtol=1e-9, atol=1e-12) for name in alone)
    assert {event["step"] for event in events(recipe, "skip")} == {7}


def test_a_batch_of_words_unheard_of_is_a_spike_and_left_out(folder):
    recipe = health_recipe(folder, "spike", {"on_spike": "skip"})
    run_alone(recipe)
    (event,) = events(recipe, "skip")
    assert event["step"] == RARE_STEP
    assert "deviations above the median" in event["reason"]
    assert same(saved_weights(recipe), plain_weights(recipe, {RARE_STEP}))
    assert losses(recipe)[RARE_STEP - 1] > losses(recipe)[RARE_STEP - 2] + 0.5


def test_nothing_happens_to_a_healthy_run_whatever_the_policy(folder):
    recipe = health_recipe(folder, "healthy", {"on_spike": "skip", "on_nonfinite": "rollback"}, training={"steps": 14})
    run_alone(recipe)
    assert same(saved_weights(recipe), plain_weights(recipe, ()))
    assert not events(recipe, "skip")


def test_a_rollback_ends_with_the_weights_of_a_run_without_those_updates(rolled_back):
    recipe = rolled_back
    assert same(saved_weights(recipe), plain_weights(recipe, TAKEN_BACK))
    (event,) = events(recipe, "rollback")
    assert (event["step"], event["first_skipped"]) == (RARE_STEP, RARE_STEP - 3)
    assert [row["step"] for row in events(recipe, "start")] == [0, 10]
    manifest = latest(recipe.directory / "checkpoints").manifest
    assert (manifest.skipped, manifest.updates) == (((12, 15),), 16)


def test_a_rollback_leaves_one_loss_for_each_step_and_none_for_those_without_an_update(rolled_back):
    found = losses(rolled_back)
    assert len(found) == STEPS
    assert [step for step, loss in enumerate(found, start=1) if loss is None] == list(TAKEN_BACK)


def test_the_checkpoint_of_the_line_that_was_given_up_is_set_aside(folder):
    recipe = health_recipe(folder, "aside", BACK, checkpoint={"every": 2, "keep_last": 9}, launch={"stop_at_step": 16})
    run_alone(recipe)
    checkpoints = recipe.directory / "checkpoints"
    aside = sorted(path.name[:23] for path in checkpoints.glob("abandoned-*"))
    assert aside == ["abandoned-step-00000012", "abandoned-step-00000014"]
    assert [info.step for info in list_checkpoints(checkpoints)] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_without_a_checkpoint_before_them_a_rollback_starts_from_initial_weights(folder):
    recipe = health_recipe(folder, "scratch", BACK, checkpoint={"every": 14})
    run_alone(recipe)
    assert [row["step"] for row in events(recipe, "start")] == [0, 0]
    assert same(saved_weights(recipe), plain_weights(recipe, TAKEN_BACK))


def test_kill_9_at_any_moment_of_a_rollback_ends_with_the_same_bits(folder, rolled_back):
    recipe = health_recipe(folder, "killed", BACK, checkpoint={"every": 5})
    rng, kills = random.Random(5), 0
    decided = recipe.directory / ROLLBACKS_FILE
    for longest in (0.02, 0.05, 0.2, 0.4, 0.8):  # from the decision, then from the start of a process that knows it
        delay = rng.uniform(0.0, longest)
        kills += kill_when(start_run(recipe, 1), lambda delay=delay: decided.exists() and time.sleep(delay) is None)
    assert kills >= 3
    assert run_processes(recipe, 1) == [0]
    assert losses(recipe) == losses(rolled_back)
    assert same(saved_weights(recipe), saved_weights(rolled_back))
    assert json.loads(decided.read_text()) == {"skipped": [[RARE_STEP - 3, RARE_STEP]]}


def test_two_processes_roll_back_together(folder, rolled_back):
    layout = {"zero_stage": 2, "micro_batch_size": 2}
    recipe = health_recipe(folder, "two-back", BACK, checkpoint={"every": 5}, layout=layout)
    assert run_processes(recipe, 2) == [0, 0]
    alone, together = saved_weights(rolled_back), saved_weights(recipe)
    assert all(torch.allclose(together[name], alone[name], rtol=1e-9, atol=1e-12) for name in alone)


def test_a_second_rollback_takes_back_updates_and_not_steps(folder):
    recipe = health_recipe(folder, "twice", {"on_nonfinite": "rollback"}, checkpoint={"every": 3})
    with poisoned(10, 12):
        run_alone(recipe)
    assert [(row["first_skipped"], row["step"]) for row in events(recipe, "rollback")] == [(7, 10), (5, 12)]
    assert same(saved_weights(recipe), plain_weights(recipe, range(5, 13)))


def test_a_spike_can_end_the_run_with_what_to_do(folder):
    recipe = health_recipe(folder, "stopped", {"on_spike": "stop"})
    with pytest.raises(DivergenceError, match=rf"step {RARE_STEP}: the loss is .* median .* health\.on_spike=skip"):
        run_alone(recipe)
    assert latest(recipe.directory / "checkpoints").step < RARE_STEP


def test_a_run_that_skips_again_and_again_is_stopped(folder):
    recipe = health_recipe(folder, "limited", SKIP | {"limit": 2, "limit_steps": 5})
    with poisoned(3, 5, 9, 11, 12), pytest.raises(DivergenceError, match=r"step 12: .*health\.limit=2 times within 5"):
        run_alone(recipe)
