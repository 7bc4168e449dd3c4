"""Real starters of other projects carry on one run, killed and stopped on the way, as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.conftest import RECIPE
from tests.slurm.cluster import slurm  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.executable).parent
STEPS = 60
SETTINGS = (
    "layout.zero_stage=3",
    f"training.steps={STEPS}",
    "data.max_epochs=1000",
    "evaluation.every=0",
    "checkpoint.every=5",
)


def program(name: str) -> str:
    beside = BESIDE / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}; pip install 'ptm-dist[mpi]'")
    return found


def torchrun() -> list[str]:
    return [program("torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "launcher"]


def mpirun(*options: str) -> list[str]:
    pytest.importorskip("mpi4py")
    return [program("mpirun"), *options, "-n", "2", sys.executable, "-m", "launcher"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run: Path) -> list[float]:
    return [loss for row in rows(run / "metrics.jsonl") if row["kind"] == "train" for loss in row["losses"]]


def starts(run: Path) -> list[dict]:
    return [row for row in rows(run / "events.jsonl") if row["event"] == "start"]


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> list[float]:
    """Losses of the same run on two processes of `ptm train`."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "recipe.yaml").write_text(RECIPE.format(root=prepared))
    process = start([sys.executable, "-m", "launcher"], root, "--nproc", "2", f"run_dir={root}/run")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    found = losses(root / "run")
    assert len(found) == STEPS
    return found


def start(command: list[str], workspace: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "train", str(workspace / "recipe.yaml"), *SETTINGS, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def disturb(command: list[str], workspace: Path, act: Callable[[subprocess.Popen[str], list[int]], None]):
    """Start, act on the starter and its ranks once a new checkpoint is there; the ranks, and how the starter ended."""
    run = workspace / "run"
    lives, saved = len(starts(run)), len(losses(run))
    process = start(command, workspace)
    deadline = time.monotonic() + 90
    while len(starts(run)) == lives or not any((run / "checkpoints").glob(f"step-*{saved // 5 * 5 + 5}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(name.rpartition(" ")[2]) for name in starts(run)[-1]["processes"]]
    act(process, pids)
    out, err = process.communicate(timeout=60)
    assert len(losses(run)) < STEPS, "it was over before anything happened to it"
    return pids, process.returncode, out, err


def kill_rank_1(process: subprocess.Popen[str], pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGKILL)


def tell_to_stop(process: subprocess.Popen[str], pids: list[int]) -> None:
    process.send_signal(signal.SIGTERM)


def test_a_run_that_mpirun_and_torchrun_carry_on_by_turns_ends_as_if_undisturbed(workspace, undisturbed):
    run = workspace / "run"
    # Two machines to mpirun, which both are this one: rank 0's address has to be found.
    pids, code, out, err = disturb(
        mpirun("-launcher", "fork", "-hosts", "localhost,127.0.0.1", "-ppn", "1"), workspace, kill_rank_1
    )
    assert code != 0
    assert re.search(rf"PID {pids[1]} RUNNING AT", out + err), "the events say that this is rank 1"

    pids, code, out, err = disturb(torchrun(), workspace, kill_rank_1)
    assert code == 1
    assert re.search(rf"Root Cause.*rank +: 1 .*exitcode +: -9 \(pid: {pids[1]}\)", err, re.DOTALL)

    _, code, out, err = disturb(mpirun(), workspace, tell_to_stop)
    assert code == 0, err
    assert "by SIGTERM" in out
    stopped_at = len(losses(run))
    assert (run / "checkpoints" / f"step-{stopped_at:08d}").is_dir()

    last = start(torchrun(), workspace)
    out, err = last.communicate(timeout=180)
    assert last.returncode == 0, err
    assert out.count(f"finished: step {STEPS} of {STEPS}") == 1
    assert starts(run)[-1]["step"] == stopped_at
    assert losses(run) == undisturbed


def test_srun_names_the_rank_that_fell_and_what_was_computed_is_the_same(
    workspace,
    undisturbed,
    slurm,  # noqa: F811
    monkeypatch,
):
    # Its nodes are all this machine, and their names lead nowhere.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    srun = ["srun", "--nodes", "2", "--ntasks", "2", "--kill-on-bad-exit", sys.executable, "-m", "launcher"]
    _, code, _, err = disturb(srun, workspace, kill_rank_1)
    assert code != 0
    assert re.search(r"task 1: Killed", err)
    found = losses(workspace / "run")
    assert found == undisturbed[: len(found)]
