"""Runs on two virtual nodes whose processes are killed and stopped: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptm_dist.recipe.loading import load_recipe
from tests.launcher.processes import programs, wait_until, worker_pids
from tests.ptm_dist.runs import events, losses, run_processes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150


@pytest.fixture
def recipe_file(workspace) -> Path:
    values = yaml.safe_load((workspace / "recipe.yaml").read_text())
    values["data"]["max_epochs"] = 1000
    values["training"] |= {"steps": STEPS, "precision": "fp64", "global_batch_size": 6}
    values["layout"] |= {"zero_stage": 1}
    values["evaluation"] = {"every": 0}
    values["checkpoint"] = {"every": 10, "keep_last": 3}
    values["launch"] |= {"silence_seconds": 4.0, "stopped_seconds": 3.0, "gather_seconds": 60.0}
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(values))
    return workspace / "recipe.yaml"


class Run:
    """A run on nodes n1 and n2 with two processes each."""

    def __init__(self, recipe_file: Path, least: int = 1) -> None:
        self.recipe = load_recipe(recipe_file)
        self.logs = self.recipe.directory / "logs"
        command = [sys.executable, "-m", "tests.launcher.elastic_cluster", str(recipe_file), str(least), "n1=2", "n2=2"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environ, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events(self.recipe, kind)

    def has_saved(self, step: int) -> Callable[[], bool]:
        return lambda: (self.recipe.directory / f"checkpoints/step-{step:08d}").is_dir() or self.is_over()

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> str:
        """Its words on standard error."""
        _, said = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def run(recipe_file):
    started = Run(recipe_file)
    yield started
    started.process.kill()
    started.process.communicate()


def undisturbed_losses(recipe_file: Path) -> list[float]:
    calm = load_recipe(recipe_file, [f"run_dir={recipe_file.parent / 'calm'}"])
    assert run_processes(calm, 4) == [0] * 4
    assert len(losses(calm)) == STEPS
    return losses(calm)


def agent_of(run: Run, node: str, module: str = "launcher.elastic.agent") -> int:
    pids = [pid for pid in programs(module, run.logs) if node in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    return pids[0]


def test_whatever_is_killed_the_run_ends_as_if_undisturbed(run, recipe_file):
    # A worker: all start again on the same nodes.
    wait_until(run.has_saved(10))
    os.kill(worker_pids(run.logs)[3], signal.SIGKILL)
    wait_until(lambda: len(run.events("round")) == 2)
    # An agent: its keeper brings it back, and the others wait for it.
    wait_until(run.has_saved(30))
    os.kill(agent_of(run, "n2"), signal.SIGKILL)
    wait_until(lambda: len(run.events("round")) == 3)
    # A stopped worker: everything stands still until it is noticed.
    wait_until(run.has_saved(50))
    stopped = worker_pids(run.logs)[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: len(run.events("round")) == 4)
    # A whole node: the other one goes on alone, until it is back.
    wait_until(run.has_saved(70))
    os.kill(agent_of(run, "n1", "launcher.elastic.keeper"), signal.SIGKILL)
    said = run.finish()
    assert "rank 3 on n2 (in phase " in said
    assert "was killed by SIGKILL" in said
    rounds = run.events("round")
    assert [row["world_size"] for row in rounds[:4]] == [4, 4, 4, 4]
    assert all(row["nodes"] == ["n1", "n2"] for row in rounds[:4])
    assert {row["node"] for row in run.events("node_lost")} == {"n1", "n2"}
    (hang,) = run.events("hang")
    assert (hang["rank"], hang["node"]) == (1, "n1")
    assert losses(run.recipe) == undisturbed_losses(recipe_file)
    assert not programs("launcher.elastic.agent", run.logs)
    assert not worker_pids(run.logs)


def test_a_node_that_is_stopped_is_left_behind_and_rejoins(recipe_file):
    values = yaml.safe_load(recipe_file.read_text())
    values["launch"]["stopped_seconds"] = 300.0
    recipe_file.write_text(yaml.safe_dump(values))
    run = Run(recipe_file)
    try:
        wait_until(run.has_saved(10))
        n2 = [agent_of(run, "n2"), agent_of(run, "n2", "launcher.elastic.keeper")]
        n2 += [pid for rank, pid in worker_pids(run.logs).items() if rank >= 2]
        send(n2, signal.SIGSTOP)
        wait_until(lambda: len(run.events("round")) == 2 and len(run.events("first_step")) == 2)
        # The rest waits, so that the run is not over before the other node is back.
        n1 = list(worker_pids(run.logs).values())
        send(n1, signal.SIGSTOP)
        send(n2, signal.SIGKILL)
        wait_until(lambda: len(run.events("grow")) == 1)
        send(n1, signal.SIGCONT)
        run.finish()
    finally:
        run.process.kill()
        run.process.communicate()
    rounds = run.events("round")
    assert [row["world_size"] for row in rounds] == [4, 2, 4]
    assert rounds[1]["nodes"] == ["n1"]
    # It makes way with a checkpoint that was due anyway: nothing is computed twice.
    assert run.events("stop")[0]["step"] == run.events("start")[2]["step"]
    assert run.events("stop")[0]["step"] % 10 == 0
    # On other processes sums are added up in another order, and what that rounds off grows from step to step.
    assert losses(run.recipe) == pytest.approx(undisturbed_losses(recipe_file), rel=1e-9)


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
