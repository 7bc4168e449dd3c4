"""DeepSpeed's universal checkpoints: it reads ours, we read its own."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ptm_dist.checkpoint.convert import export_universal, import_universal
from ptm_dist.checkpoint.state import SavedState
from ptm_dist.checkpoint.store import CheckpointStore, Description
from ptm_dist.parallel.control import control_group
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from tests.distributed import run_distributed
from tests.parity.cells import Problem
from tests.ptm_dist.deepspeed_cases import Case, State, gather, running, train

BERT = Problem(family="bert", precision="fp32", steps=6)
STEPS = 3


def of_stage(stage: int) -> Case:
    return Case(BERT, {"zero_stage": stage})


def describe(case: Case) -> Description:
    recipe = case.recipe()
    return Description(
        step=STEPS,
        samples=STEPS * BERT.global_batch,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(recipe),
        model_fingerprint=model_fingerprint(recipe),
        layout="any",
        data_fingerprint="any",
        metrics={},
        torch_version=torch.__version__,
        world_size=2,
        saved_at=datetime.now(UTC).isoformat(),
    )


def save_both(case: Case, folder: Path) -> State:
    """Three steps, saved in our format and in DeepSpeed's own."""
    with running(case) as engine:
        train(engine, case.problem, 0, STEPS)
        CheckpointStore(folder / "ours", control_group()).save(engine.state(), describe(case))
        engine.engine.save_checkpoint(str(folder / "theirs"))
        return gather(engine)


def load_universal(cases: list[Case], folder: Path) -> list[tuple[State, list[float], float]]:
    """What DeepSpeed's own loading makes of a folder, and how training goes on."""
    found = []
    for case in cases:
        with running(case) as engine:
            engine.engine._config.load_universal_checkpoint = True
            engine.engine.load_checkpoint(str(folder))
            state = gather(engine)
            steps = max(float(state["step"]) for state in engine.engine.basic_optimizer.state.values())
            dist.barrier()
            found.append((state, train(engine, case.problem, STEPS, BERT.steps).losses if steps else [], steps))
    return found


def through(case: Case) -> list[float]:
    with running(case) as engine:
        return train(engine, case.problem, 0, BERT.steps).losses[STEPS:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, State]:
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_distributed(save_both, 2, of_stage(1), folder)[0]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_deepspeed_loads_what_we_export_at_every_stage_and_goes_on(saved, tmp_path):
    folder, state = saved
    export_universal(folder / "ours", tmp_path / "universal")
    found = run_distributed(load_universal, 2, [of_stage(1), of_stage(2), of_stage(3)], tmp_path / "universal")[0]
    assert all(same(loaded, state) for loaded, _, _ in found)
    assert [steps for _, _, steps in found] == [STEPS] * 3
    expected = run_distributed(through, 2, of_stage(1))[0]
    for _, losses, _ in found[:2]:
        assert losses == pytest.approx(expected, rel=1e-6)


def test_what_deepspeed_makes_is_imported_with_the_same_bits(saved, tmp_path):
    folder, state = saved
    target = tmp_path / "universal" / "global_step3_universal"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / "theirs" / "global_step3"), "--output_folder", str(target)]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run([*command, *workers], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = import_universal(target, tmp_path / "back", recipe=of_stage(1).recipe())
    assert imported.step == STEPS
    back = SavedState(tmp_path / "back" / "checkpoints" / "step-00000003")
    assert same({name: back.read(name) for name in back.shapes}, state)
