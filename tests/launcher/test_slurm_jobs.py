"""Runs as jobs of a real Slurm: they finish, stop, come back by themselves, and learn the same everywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import slurm, text_of, wait_for  # noqa: F401  (slurm is a fixture)

STEPS = 24
RUNNING = re.compile(r"^starting tiny at step|^resuming tiny at step", re.MULTILINE)


@pytest.fixture(autouse=True)
def where_paths_count_from(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (workspace / "cluster.yaml").write_text("tasks_per_node: 1\nsignal_seconds: 20\n")
    text = (workspace / "recipe.yaml").read_text()
    text = text.replace("steps: 6", f"steps: {STEPS}").replace("precision: fp32", "precision: fp64")
    text = text.replace("max_epochs: 4", "max_epochs: 50").replace("checkpoint: {every: 3}", "checkpoint: {every: 0}")
    text = text.replace("evaluation: {every: 3, samples: 8}", "")
    (workspace / "recipe.yaml").write_text(text)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in text_of(run / "metrics.jsonl").splitlines()]
    return [loss for row in rows if row["kind"] == "train" for loss in row["losses"]]


def events(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in text_of(run / "events.jsonl").splitlines()]
    return [row for row in rows if row["event"] == kind]


def submit(ptm, workspace, *more: object) -> int:
    result = ptm("submit", workspace / "recipe.yaml", "--cluster", workspace / "cluster.yaml", "--json", *more)
    assert result.code == 0, result.err
    return result.json["job"]


def pause_when_it_trains(run: Path, ranks: int) -> list[int]:
    """Stops all ranks of a run before they get far; their process ids."""
    log = run / "logs" / "rank_0.log"
    wait_for(lambda: bool(RUNNING.search(text_of(log))) or "error" in text_of(log))
    assert "error" not in text_of(log)
    pids = [int(re.findall(r"pid (\d+)", text_of(run / "logs" / f"rank_{rank}.log"))[-1]) for rank in range(ranks)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert len(losses(run)) < STEPS, "the run was over before it could be stopped"
    return pids


def let_go(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def log_of(run: Path, job: int) -> str:
    return text_of(run / "logs" / f"slurm-{job}.log")


def test_a_job_uses_the_nodes_its_layout_can_stops_when_told_and_goes_on_elsewhere(
    ptm,
    workspace,
    slurm,  # noqa: F811
):
    alone = ptm("train", workspace / "recipe.yaml", f"run_dir={workspace}/alone")
    assert alone.code == 0, alone.err
    run = workspace / "run"
    first = submit(ptm, workspace, "--nodes", "2:3", "layout.tensor_parallel=2")
    pids = pause_when_it_trains(run, 2)
    assert f"job {first}, life 0, on n[1-3]" in log_of(run, first)
    assert "round 0: 2 processes on n1, n2; to spare: n3" in log_of(run, first)
    again = ptm("submit", workspace / "recipe.yaml", "--cluster", workspace / "cluster.yaml")
    assert again.code == 2
    assert f"job {first} is RUNNING on n[1-3]; wait for it, or end it by: ptm stop {run}" in again.err
    assert f"{first}  RUNNING  n[1-3]  {run}" in ptm("status").out

    stop = subprocess.Popen([sys.executable, "-m", "launcher", "stop", str(run), "--json"], stdout=subprocess.PIPE)
    wait_for(lambda: "save and leave" in log_of(run, first))
    let_go(pids)
    state = json.loads(stop.communicate(timeout=120)[0])
    assert stop.returncode == 0
    assert (state["job"]["state"], state["is_finished"]) == ("COMPLETED", False)
    assert 0 < state["checkpoint_step"] == state["step"] < STEPS
    assert slurm.job(first)["Restarts"] == "0"

    second = submit(ptm, workspace, "--nodes", 1)
    assert slurm.wait(second)["JobState"] == "COMPLETED"
    assert losses(run) == pytest.approx(losses(workspace / "alone"), rel=1e-12)
    assert [event["world_size"] for event in events(run, "start")] == [2, 1]
    shown = ptm("status", run)
    assert f"step {STEPS} of {STEPS}, loss {losses(run)[-1]:.4f}" in shown.out
    assert shown.out.endswith("finished\n")
    assert f"finished: step {STEPS} of {STEPS}" in ptm("logs", run, "-f").out
    assert ptm("logs", run, "--first-error").out == "no rank failed\n"
    assert ptm("stop", run).code == 2


def test_a_job_saves_before_its_time_limit_and_comes_back_until_the_run_is_finished(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    (workspace / "cluster.yaml").write_text("tasks_per_node: 2\ntime: '1'\nsignal_seconds: 55\n")
    job = submit(ptm, workspace, "--nodes", 1)
    pids = pause_when_it_trains(run, 2)
    wait_for(lambda: "save and leave" in log_of(run, job))
    let_go(pids)
    wait_for(lambda: slurm.job(job)["JobState"] == "PENDING")
    slurm.cluster.command("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED"
    assert int(ended["Restarts"]) == len(events(run, "requeue")) == len(events(run, "start")) - 1 > 0
    assert len(losses(run)) == STEPS
    assert "life 1" in log_of(run, job)


def test_the_rank_that_died_first_is_named_and_the_job_fails(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    job = submit(ptm, workspace, "--nodes", 2, "launch.max_restarts=0")
    pids = pause_when_it_trains(run, 2)
    os.kill(pids[1], signal.SIGKILL)
    let_go(pids[:1])
    assert slurm.wait(job)["JobState"] == "FAILED"
    told = ptm("logs", run, "--first-error").out
    assert told.startswith("rank 1 on n2 (in phase ")
    assert "): was killed by SIGKILL (out of memory?)" in told
    assert events(run, "requeue") == []


def test_a_job_that_waits_is_taken_out_of_the_queue(ptm, workspace, slurm):  # noqa: F811
    slurm.cluster.command("scontrol", "update", "nodename=n[1-4]", "state=drain", "reason=test")
    try:
        job = submit(ptm, workspace, "--nodes", 2)
        assert f"job {job} is PENDING (" in ptm("status", workspace / "run").out
        stopped = ptm("stop", workspace / "run")
        assert stopped.out == f"job {job} is CANCELLED; nothing was saved; `ptm submit` continues the run\n"
    finally:
        slurm.cluster.command("scontrol", "update", "nodename=n[1-4]", "state=resume")
    assert not list((workspace / "run" / "slurm").glob("stop-*"))
