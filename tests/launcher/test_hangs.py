"""Who holds the others up: rules on what ranks said, and real stacks of ranks that wait for another one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launcher.elastic.hangs import Beat, is_hanging, is_waiting, latest_rank
from launcher.worker import STACK_SIGNAL, stack_path
from ptm_dist.training.link import Phase
from tests.distributed import _context
from tests.launcher import waiting_pair
from tests.launcher.processes import is_alive, wait_until

STEP, START, STOPPED = 600.0, 1800.0, 60.0


def hangs(*beats: Beat) -> bool:
    return is_hanging(dict(enumerate(beats)), STEP, START, STOPPED)


def test_a_round_hangs_when_every_rank_was_silent_too_long():
    assert hangs(Beat(Phase.STEP, 5, 601), Beat(Phase.DATA, 5, 700))
    assert not hangs(Beat(Phase.STEP, 5, 601), Beat(Phase.DATA, 5, 599))
    assert not hangs()


@pytest.mark.parametrize("phase", [Phase.BUILD, Phase.LOAD, Phase.SAVE, Phase.END])
def test_ranks_may_take_longer_to_build_load_and_save(phase):
    assert not hangs(Beat(Phase.STEP, 5, 1000), Beat(phase, 5, 1000))
    assert hangs(Beat(Phase.STEP, 5, 1801), Beat(phase, 5, 1801))


def test_one_stopped_rank_is_enough_for_a_hang():
    assert hangs(Beat(Phase.STEP, 5, 1, "R"), Beat(Phase.STEP, 5, 61, "T"))
    assert not hangs(Beat(Phase.STEP, 5, 1, "R"), Beat(Phase.STEP, 5, 59, "T"))


@pytest.mark.parametrize(
    ("late", "other"),
    [
        (Beat(Phase.STEP, 9, 61, "T"), Beat(Phase.STEP, 5, 900, "S")),  # stopped, though further than the other
        (Beat(Phase.STEP, 4, 601), Beat(Phase.BUILD, 5, 900)),  # fewer steps, whatever phase
        (Beat(Phase.DATA, 5, 601), Beat(Phase.STEP, 5, 900)),  # still has no batch
        (Beat(Phase.STEP, 5, 900), Beat(Phase.STEP, 5, 601)),  # silent for longer
    ],
)
def test_the_rank_that_got_least_far_holds_up_the_others(late, other):
    assert latest_rank({0: other, 1: late}, {}) == 1
    assert latest_rank({0: late, 1: other}, {}) == 0


def test_what_a_rank_says_survives_its_journey():
    beat = Beat(Phase.SAVE, 17, 60.1234, "T")
    assert Beat.from_list(beat.as_list()) == Beat(Phase.SAVE, 17, 60.123, "T")
    assert beat.describe() == "in phase save after step 17, for 60 s, stopped by a signal"


@pytest.mark.parametrize("wait", waiting_pair.WAITS)
def test_stacks_tell_a_rank_that_waits_from_one_that_is_waited_for(wait, tmp_path):
    agent = _context.Process(target=waiting_pair.start, args=(wait, tmp_path))
    agent.start()
    try:
        files = [tmp_path / f"pid-{rank}" for rank in range(2)]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files), 30)
        pids = [int(file.read_text()) for file in files]
        wait_until(lambda: "be_late" in stack_of(tmp_path, 1, pids[1]), 10)
        wait_until(lambda: is_waiting(stack_of(tmp_path, 0, pids[0])), 10)
        stacks = {rank: stack_of(tmp_path, rank, pid) for rank, pid in enumerate(pids)}
        assert not is_waiting(stacks[1])
        # Both say the same of themselves, and rank 0 for longer: only the stacks tell.
        beats = {0: Beat(Phase.STEP, 7, 900.0), 1: Beat(Phase.STEP, 7, 601.0)}
        assert latest_rank(beats, {}) == 0
        assert latest_rank(beats, stacks) == 1
    finally:
        agent.kill()
        agent.join()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 10)  # workers do not outlive their agent


def stack_of(logs: Path, rank: int, pid: int) -> str:
    """The newest stack of a process that writes it when it is told to."""
    path = stack_path(logs, rank)
    before = path.stat().st_size
    os.kill(pid, STACK_SIGNAL)
    wait_until(lambda: path.stat().st_size > before, 10)
    time.sleep(0.05)  # it is written in pieces
    return path.read_text()[before:]
