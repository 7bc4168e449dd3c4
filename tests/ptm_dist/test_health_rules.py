"""The rules behind decisions about steps: what a spike is, which steps are meant, and what is remembered."""

from __future__ import annotations

import json
import random
from statistics import NormalDist

import numpy as np
import pytest
import torch
import xxhash

from ptm_dist.checkpoint.store import CheckpointStore, Description, read_checkpoint
from ptm_dist.errors import RecipeError, RunDirectoryError
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.training.rollback import ROLLBACKS_FILE, enforce, is_abandoned
from ptm_dist.training.run_directory import RunDirectory
from ptm_dist.training.skips import Skips
from ptm_dist.training.spikes import LossWindow
from tests.ptm_dist.recipes import small_recipe


def description(step: int, **values) -> Description:
    return Description(
        step=step,
        samples=8 * step,
        recipe={},
        recipe_fingerprint="r",
        model_fingerprint="m",
        layout="single process",
        data_fingerprint="d",
        metrics={},
        torch_version=torch.__version__,
        world_size=1,
        saved_at="2026-01-01T00:00:00+00:00",
        **values,
    )


def save(run: RunDirectory, step: int, **values):
    state = {"model.w": LocalShard(torch.zeros(3), (3,), (0,))}
    return CheckpointStore(run.checkpoints, ALONE).save(state, description(step, **values))


def test_a_spike_is_so_many_deviations_of_normal_numbers_above_the_median():
    rng = random.Random(1)
    losses = [3.0 + rng.gauss(0.0, 0.02) for _ in range(64)]
    window = LossWindow(64, 5.0, losses)
    deviation = np.median(np.abs(losses - np.median(losses))) / NormalDist().inv_cdf(0.75)
    limit = np.median(losses) + 5.0 * deviation
    assert window.judge(limit - 1e-6) is None
    assert window.judge(limit + 1e-6).deviations == pytest.approx(5.0, abs=1e-3)


def test_one_wild_loss_in_the_window_does_not_hide_the_next_one():
    losses = [3.0 + 0.01 * (step % 3) for step in range(16)]
    assert LossWindow(16, 8.0, [*losses[1:], 500.0]).judge(4.0) is not None


def test_a_falling_loss_a_short_history_and_a_hair_above_a_flat_curve_are_no_spikes():
    falling = [10.0 - 0.5 * step for step in range(16)]
    window = LossWindow(16, 4.0)
    for loss in falling:
        assert window.judge(loss) is None
        window.add(loss)
    assert LossWindow(16, 1.0, [3.0] * 15).judge(100.0) is None
    assert LossWindow(16, 8.0, [3.0] * 16).judge(3.001) is None
    assert LossWindow(16, 8.0, [3.0] * 16).judge(3.1) is not None


def test_updates_are_counted_back_past_steps_that_made_none():
    skips = Skips([(10, 12)])
    assert skips.first_of_newest(1, 20) == 20
    assert skips.first_of_newest(8, 20) == 13
    assert skips.first_of_newest(9, 20) == 9
    assert skips.first_of_newest(100, 20) == 1


def test_decisions_are_counted_once_each_and_as_long_as_they_reach():
    skips = Skips([(3, 3)])
    skips.add(5, 9)
    skips.add(5, 9)
    assert skips.ranges == ((3, 3), (5, 9))
    assert [skips.decisions_after(step) for step in (2, 3, 8, 9)] == [2, 1, 1, 0]
    assert [step for step in range(1, 11) if skips.covers(step)] == [3, 5, 6, 7, 8, 9]


def test_a_checkpoint_is_given_up_if_it_saw_a_step_that_its_line_does_not_leave_out():
    rollbacks = [(12, 15)]
    assert not is_abandoned(description(11), rollbacks)
    assert is_abandoned(description(12), rollbacks)
    assert is_abandoned(description(20, skipped=((12, 14),)), rollbacks)
    assert not is_abandoned(description(20, skipped=((3, 3), (12, 15))), rollbacks)


def test_enforcing_a_rollback_again_changes_nothing(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (5, 10, 15):
        save(run, step)
    (tmp_path / ROLLBACKS_FILE).write_text(json.dumps({"skipped": [[8, 12]]}))
    assert enforce(run, ALONE) == ((8, 12),)
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert [name[:23] for name in left] == ["abandoned-step-00000010", "abandoned-step-00000015", "step-00000005"]
    save(run, 10, skipped=((8, 12),))
    enforce(run, ALONE)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [*left, "step-00000010"]


def test_a_record_of_rollbacks_that_cannot_be_read_stops_the_run_with_what_to_do(tmp_path):
    (tmp_path / ROLLBACKS_FILE).write_text('{"skipped": [[1')
    with pytest.raises(RunDirectoryError, match=r"rollbacks\.json.*copy it back, or remove it"):
        enforce(RunDirectory(tmp_path), ALONE)


def test_checkpoints_remember_skips_and_losses_to_the_bit_and_count_updates(tmp_path):
    losses = tuple(torch.rand(20, dtype=torch.float64).tolist())
    info = save(RunDirectory(tmp_path), 10, skipped=((3, 4),), updates=8, recent_losses=losses)
    manifest = read_checkpoint(info.path).manifest
    assert (manifest.skipped, manifest.updates_done, manifest.recent_losses) == (((3, 4),), 8, losses)


def test_a_checkpoint_of_a_version_without_skips_made_an_update_in_every_step(tmp_path):
    info = save(RunDirectory(tmp_path), 10)
    path = info.path / "manifest.json"
    values = json.loads(path.read_text())
    for name in ("skipped", "updates", "recent_losses"):
        del values[name]
    values["checksum"] = ""
    values["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(values, indent=1).encode())
    path.write_text(json.dumps(values, indent=1))
    manifest = read_checkpoint(info.path).manifest
    assert (manifest.updates_done, manifest.skipped, manifest.recent_losses) == (10, (), ())
    path.write_text(json.dumps(values | {"layout": "another"}, indent=1))
    assert "damaged" in CheckpointStore(info.path.parent, ALONE).problem(info.path)


@pytest.mark.parametrize(
    ("health", "message"),
    [
        ({"on_spike": "rollback"}, r"health\.on_spike=rollback without checkpoints .* set checkpoint\.every"),
        ({"spike_window": 32}, r"health\.spike_window=32 has no effect; leave it out, or set health\.on_spike"),
        ({"on_spike": "skip", "rollback_steps": 9}, r"health\.rollback_steps=9 has no effect"),
        ({"on_spike": "stop", "limit": 3}, r"health\.limit=3 has no effect"),
        ({"pulse_seconds": 0, "straggler_ratio": 2.0}, r"health\.straggler_ratio=2\.0 has no effect"),
    ],
)
def test_a_section_that_does_not_do_what_it_says_is_refused(health, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(small_recipe(**{f"health__{key}": value for key, value in health.items()}), 1, None)


def test_every_policy_with_checkpoints_is_accepted():
    for policy in ("stop", "skip", "rollback"):
        keys = {"health__on_nonfinite": policy, "health__on_spike": policy, "health__spike_window": 16}
        check_recipe(small_recipe(**keys, checkpoint__every=10), 1, None)
