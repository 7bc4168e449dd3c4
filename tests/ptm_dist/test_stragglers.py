"""A rank that really is slow is named; nobody is where there is nobody to compare with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ptm_dist.training.metrics import read_rows
from ptm_dist.training.pulse import Pulse
from ptm_dist.training.stragglers import Lateness
from tests.ptm_dist.runs import events, make_recipe, run_alone, start_run, write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path


def recipe_of(folder):
    """Of a run that goes on until it is stopped."""
    return make_recipe(
        folder,
        "a",
        training={"steps": 1_000_000},
        data={"max_epochs": 1e9},
        evaluation={"every": 0},
        checkpoint={"every": 0},
        health={"pulse_seconds": 0.05},
    )


def wait_until(is_so: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def crowded(process: Any) -> Iterator[None]:
    """A process on one core with another one that has three times its weight there.

    So it is slower than its peer whoever else is on this machine.
    """
    core = max(os.sched_getaffinity(0))
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(other.pid, {core})
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 5)
    yield
    other.kill()
    other.wait()


def test_a_rank_that_shares_its_core_is_named_as_a_straggler(folder):
    recipe = recipe_of(folder)
    processes = start_run(recipe, 2)
    wait_until(lambda: any("slowest_rank" in row for row in read_rows(recipe.directory / "metrics.jsonl")))
    with crowded(processes[1]):
        wait_until(lambda: any(row["rank"] == 1 for row in events(recipe, "straggler")))
    os.kill(processes[0].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    event = next(row for row in events(recipe, "straggler") if row["rank"] == 1)
    assert event["node"] == socket.gethostname()
    rows = {row["step"]: row for row in read_rows(recipe.directory / "metrics.jsonl") if "slowest_rank" in row}
    row = rows[event["step"]]
    assert (row["slowest_rank"], row["slowest_ratio"]) == (1, event["ratio"])
    assert row["slowest_ratio"] >= 1.5
    assert event["pulse_seconds"] == pytest.approx(row["slowest_ratio"] * row["pulse_seconds"])


def test_a_run_of_one_process_has_nobody_to_compare_with(folder):
    recipe = make_recipe(folder, "alone", health={"pulse_seconds": 0.001})
    run_alone(recipe)
    assert not any("slowest_rank" in row for row in read_rows(recipe.directory / "metrics.jsonl"))


def test_late_is_who_was_late_three_times_in_a_row_and_on_time_who_was_as_often():
    lateness = Lateness(3, 1.5)
    slow, fine = [1.0, 1.0, 1.5], [1.0, 1.4, 1.0]
    told = [lateness.changes(ratios) for ratios in (slow, slow, fine, slow, slow, slow, slow, fine, fine, slow)]
    assert told == [[], [], [], [], [], [2], [], [], [], []]
    assert lateness.late == {2}
    assert [lateness.changes(fine) for _ in range(4)] == [[], [], [2], []]
    assert lateness.late == set()


def test_a_pulse_computes_the_same_product_each_time():
    pulse = Pulse(torch.device("cpu"))
    assert pulse.seconds() > 0
    assert torch.allclose(pulse._product, torch.full((256, 256), 1 / 256))
