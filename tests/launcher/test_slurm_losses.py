"""Jobs of a real Slurm that lose nodes: they go on with the others, with one that comes, or as a successor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.virtual_cluster import VirtualCluster
from tests.launcher.processes import worker_pids
from tests.slurm.cluster import slurm, text_of, wait_for  # noqa: F401  (slurm is a fixture)

STEPS = 200
# On other processes sums are added up in another order; at this learning rate that hardly grows from step to step.
LEARNING_RATE = 0.001
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def where_paths_count_from(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (workspace / "cluster.yaml").write_text("tasks_per_node: 1\nsignal_seconds: 20\ngrow_seconds: 2\n")
    values = yaml.safe_load((workspace / "recipe.yaml").read_text())
    values["data"]["max_epochs"] = 1000
    values["training"] |= {"steps": STEPS, "precision": "fp64", "global_batch_size": 6}
    values["optimizer"]["learning_rate"] = LEARNING_RATE
    values["layout"] |= {"zero_stage": 1}
    values["evaluation"] = {"every": 0}
    values["checkpoint"] = {"every": 20, "keep_last": 3}
    values["launch"] |= {"stopped_seconds": 300.0}
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(values))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(path).splitlines() if line.endswith("}")]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows(run / "events.jsonl") if row["event"] == kind]


def losses(run: Path) -> list[float]:
    return [loss for row in rows(run / "metrics.jsonl") if row["kind"] == "train" for loss in row["losses"]]


def undisturbed_losses(ptm, workspace: Path) -> list[float]:
    alone = ptm("train", workspace / "recipe.yaml", f"run_dir={workspace}/alone")
    assert alone.code == 0, alone.err
    return losses(workspace / "alone")


def submit(ptm, workspace: Path, *more: object) -> int:
    result = ptm("submit", workspace / "recipe.yaml", "--cluster", workspace / "cluster.yaml", "--json", *more)
    assert result.code == 0, result.err
    return result.json["job"]


def pause(run: Path) -> list[int]:
    """Stop all workers, so that the run is not over before something else has happened."""
    pids = list(worker_pids(run / "logs").values())
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    assert len(losses(run)) < STEPS, "the run was over before it could be stopped"
    return pids


def let_go(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def crash(cluster: VirtualCluster, node: str) -> None:
    """Kill everything that runs on a virtual node, its daemon first."""
    daemon = cluster.pids()[f"slurmd-{node}"]
    os.kill(daemon, signal.SIGKILL)
    mark = f"SLURMD_NODENAME={node}".encode()
    configuration = f"SLURM_CONF={cluster.configuration}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                if mark in variables and configuration in variables:
                    _kill_with_steward(int(folder.name))


def _kill_with_steward(pid: int) -> None:
    """A process of a step, and the slurmstepd above it."""
    folder = Path(f"/proc/{pid}")
    if parent_is(folder, b"slurmstepd"):
        os.kill(parent_of(folder), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def parent_of(folder: Path) -> int:
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def parent_is(folder: Path, program: bytes) -> bool:
    return program in Path(f"/proc/{parent_of(folder)}/cmdline").read_bytes()


def steps_done(run: Path, count: int) -> None:
    wait_for(lambda: len(losses(run)) >= count)


def test_a_lost_node_is_left_behind_and_another_one_comes(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    job = submit(ptm, workspace, "--nodes", "2:4")
    wait_for(lambda: len(events(run, "first_step")) == 1)
    assert events(run, "round")[0]["nodes"] == ["n1", "n2", "n3", "n4"]
    crash(slurm.cluster, "n3")
    wait_for(lambda: len(events(run, "first_step")) == 2)
    pids = pause(run)
    assert events(run, "round")[1]["nodes"] == ["n1", "n2", "n4"]
    # Slurm must notice on its own that the node is down, and the job asks for another one.
    wait_for(lambda: len(events(run, "node_lost")) == 1 and slurm.job(job)["NumNodes"] == "3")
    slurm.cluster.start_node("n3")
    wait_for(lambda: len(events(run, "grow")) == 1)
    let_go(pids)
    assert slurm.wait(job)["JobState"] == "COMPLETED", text_of(run / "logs" / f"slurm-{job}.log")
    assert [row["world_size"] for row in events(run, "round")] == [4, 3, 4]
    assert set(events(run, "round")[2]["nodes"]) == {"n1", "n2", "n3", "n4"}
    assert losses(run) == pytest.approx(undisturbed_losses(ptm, workspace), rel=TOLERANCE)
    assert len(losses(run)) == STEPS
    assert slurm.cluster.command("squeue", "-h").stdout == ""


def test_when_its_first_node_breaks_the_others_send_the_job_back_to_the_queue(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    job = submit(ptm, workspace, "--nodes", "1:2")
    wait_for(lambda: len(events(run, "checkpoint")) > 0)
    crash(slurm.cluster, "n1")
    try:
        wait_for(lambda: slurm.job(job)["Restarts"] == "1")
        assert slurm.wait(job)["JobState"] == "COMPLETED", text_of(run / "logs" / f"slurm-{job}.log")
    finally:
        slurm.cluster.start_node("n1")
    assert [event["node"] for event in events(run, "requeue")] == ["n2"]
    assert len(events(run, "start")) == 2
    assert events(run, "start")[1]["step"] > 0
    assert losses(run) == pytest.approx(undisturbed_losses(ptm, workspace), rel=TOLERANCE)
    assert slurm.cluster.command("squeue", "-h").stdout == ""


def test_a_successor_continues_where_the_script_of_the_job_was_killed(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    wait_for(lambda: slurm.is_idle(4))
    job = submit(ptm, workspace, "--nodes", "1:2")
    wait_for(lambda: len(events(run, "checkpoint")) > 0)
    name = f"/job{job:05d}/slurm_script".encode()
    (script,) = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and name in (folder / "cmdline").read_bytes() and parent_is(folder, b"slurmstepd")
    ]
    os.kill(script, signal.SIGKILL)
    wait_for(lambda: slurm.job(job)["JobState"] == "FAILED")
    wait_for(lambda: len(events(run, "submit")) == 2)
    assert events(run, "submit")[1]["after"] == job
    successor = events(run, "submit")[1]["job"]
    assert slurm.wait(successor)["JobState"] == "COMPLETED", text_of(run / "logs" / f"slurm-{successor}.log")
    assert len(events(run, "start")) == 2
    assert losses(run) == pytest.approx(undisturbed_losses(ptm, workspace), rel=TOLERANCE)
    assert ptm("status", run).out.endswith("finished\n")
    assert slurm.cluster.command("squeue", "-h").stdout == ""


def test_a_preempted_job_saves_goes_back_to_the_queue_and_stays_on_its_curve(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    (workspace / "cluster.yaml").write_text("tasks_per_node: 1\nsignal_seconds: 60\npartition: low\nexclusive: true\n")
    wait_for(lambda: slurm.is_idle(4))
    job = submit(ptm, workspace, "--nodes", 4)
    wait_for(lambda: len(events(run, "first_step")) == 1)
    other = "#!/bin/bash\nsleep 3\n"
    command = ["sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null"]
    rival = int(subprocess.run(command, input=other, capture_output=True, text=True, check=True).stdout)
    assert slurm.wait(rival)["JobState"] == "COMPLETED"
    assert slurm.wait(job)["JobState"] == "COMPLETED", text_of(run / "logs" / f"slurm-{job}.log")
    assert int(slurm.job(job)["Restarts"]) >= 1
    starts = events(run, "start")
    assert len(starts) >= 2
    assert starts[1]["step"] > 0
    assert losses(run) == pytest.approx(undisturbed_losses(ptm, workspace), rel=TOLERANCE)


def test_a_node_without_the_run_directory_is_named_and_left_out(ptm, workspace, slurm):  # noqa: F811
    run = workspace / "run"
    run.mkdir(exist_ok=True)
    wait_for(lambda: slurm.is_idle(4))
    try:
        # Its own mount namespace hides the run directory from everything that this node starts.
        slurm.cluster.command("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        os.kill(slurm.cluster.pids()["slurmd-n2"], signal.SIGTERM)
        wait_for(lambda: "slurmd-n2" not in slurm.cluster.pids())
        hide = f"mount -t tmpfs none {run} && exec slurmd -f {slurm.cluster.configuration} -N n2"
        hidden = subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True, text=True, check=False)
        if hidden.returncode != 0:
            pytest.skip(f"no mount namespace can be made here: {hidden.stderr.strip()}")
        wait_for(lambda: slurm.is_idle(4))
        job = submit(ptm, workspace, "--nodes", "2:4", "training.steps=40")
        assert slurm.wait(job)["JobState"] == "COMPLETED", text_of(run / "logs" / f"slurm-{job}.log")
    finally:
        with suppress(KeyError):
            os.kill(slurm.cluster.pids()["slurmd-n2"], signal.SIGTERM)
        wait_for(lambda: "slurmd-n2" not in slurm.cluster.pids())
        slurm.cluster.start_node("n2")
    assert events(run, "round")[0]["nodes"] == ["n1", "n3", "n4"]
    (bad,) = events(run, "bad_node")
    assert bad["node"] == "n2"
    assert "mount the same file system" in bad["reason"]
    assert "node n2 is left out: " in text_of(run / "logs" / f"slurm-{job}.log")
