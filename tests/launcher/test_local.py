from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.launcher.processes import is_alive, wait_until, worker_pids

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, actions: dict[int, str], restarts: int = 0, attempts: int = 99) -> subprocess.Popen[str]:
    folder.mkdir()
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump({"actions": actions, "attempts": attempts}))
    command = [sys.executable, "-m", "tests.launcher.launch_plan", str(plan), str(len(actions)), str(restarts)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_rank_that_raised_is_named_before_those_that_lost_it(tmp_path):
    process = start(tmp_path / "run", {0: "wait", 1: "raise", 2: "wait"})
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = output.splitlines()
    assert lines[0] == "hello from rank 0 of attempt 0"
    assert lines[1:3] == ["error", "rank 1 (in phase step after step 1): ValueError: wrong number in rank 1"]
    assert lines[-1] == f"full log: {tmp_path / 'run' / 'rank_1.log'}"
    assert errors == "", "elastic's own account was printed too"
    log = (tmp_path / "run" / "rank_1.log").read_text()
    assert "hello from rank 1 of attempt 0" in log
    assert "raise ValueError" in log
    for victim in (0, 2):
        failure = json.loads((tmp_path / "run" / f"failure_rank{victim}.json").read_text())
        assert failure["kind"] == "collateral"


def test_a_rank_killed_by_the_system_is_the_first_cause(tmp_path):
    process = start(tmp_path / "run", {0: "wait", 1: "kill"})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 (in phase step after step 1): was killed by SIGKILL (out of memory?)" in output


def test_a_rank_that_leaves_without_a_word_is_named_while_another_hangs(tmp_path):
    began = time.monotonic()
    process = start(tmp_path / "run", {0: "hang", 1: "exit"})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 (in phase step after step 1): exited with code 7" in output
    assert time.monotonic() - began < 28, "the hanging rank was waited for as long as elastic does"


def test_a_users_mistake_is_one_message_and_never_tried_again(tmp_path):
    process = start(tmp_path / "run", {0: "wait", 1: "user"}, restarts=3)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines() == [
        "hello from rank 0 of attempt 0",
        "user",
        "shard 7 is truncated; copy it again",
    ]
    assert errors == ""


def test_failed_workers_start_again_and_finish(tmp_path):
    process = start(tmp_path / "run", {0: "wait", 1: "raise"}, restarts=2, attempts=1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line for line in output.splitlines() if "hello" in line] == [
        "hello from rank 0 of attempt 0",
        "hello from rank 0 of attempt 1",
    ]
    assert (
        "starting again (1 more times without a new step) after: rank 1 (in phase step after step 1): ValueError"
        in errors
    )
    log = (tmp_path / "run" / "rank_1.log").read_text()
    assert "attempt 0" in log
    assert "attempt 1" in log


def test_a_stop_signal_lets_all_workers_finish(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, {0: "stop", 1: "stop"})
    wait_until(lambda: (folder / "ready0").exists() and (folder / "ready1").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (folder / "stopped0").exists()
    assert (folder / "stopped1").exists()


def test_a_second_stop_signal_kills_workers_that_do_not_finish(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, {0: "hang", 1: "hang"})
    wait_until(lambda: all((folder / f"rank_{rank}.log").exists() for rank in (0, 1)))
    wait_until(lambda: "hello" in (folder / "rank_1.log").read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert not any(is_alive(pid) for pid in worker_pids(folder).values())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, {0: "hang", 1: "wait"})
    wait_until(lambda: all((folder / f"rank_{rank}.log").exists() for rank in (0, 1)))
    wait_until(lambda: "hello" in (folder / "rank_1.log").read_text())
    pids = worker_pids(folder).values()
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), seconds=5)
