"""What can go wrong with a run, one function for each kind: each does it once, at random, and returns when it is done.

A fault may be followed by a kill, so that what it broke is needed: a checkpoint is only looked at by who loads it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TypeAlias

from tests.chaos.disturbed import DisturbedRun
from tests.launcher.processes import worker_pids

Fault: TypeAlias = Callable[[DisturbedRun, Random], None]

_LONGEST_START_SECONDS = 0.8
_FILL_BYTES = 1 << 16


def kill_worker(run: DisturbedRun, random: Random) -> None:
    """One rank is killed."""
    _signal_one(run.workers, random, signal.SIGKILL)


def kill_agent(run: DisturbedRun, random: Random) -> None:
    """The agent of a node is killed, and its workers with it."""
    _signal_one(run.agents, random, signal.SIGKILL)


def kill_node(run: DisturbedRun, random: Random) -> None:
    """The keeper of a node is killed, and all else of it with it."""
    _signal_one(run.keepers, random, signal.SIGKILL)


def stop_worker(run: DisturbedRun, random: Random) -> None:
    """One rank is stopped: it neither goes on nor ends."""
    _signal_one(run.workers, random, signal.SIGSTOP)


def stop_agent(run: DisturbedRun, random: Random) -> None:
    """The agent of a node is stopped: the node says nothing any more."""
    _signal_one(run.agents, random, signal.SIGSTOP)


def kill_during_save(run: DisturbedRun, random: Random) -> None:
    """A rank is killed while a checkpoint is being written."""
    workers = run.workers()
    run.wait_for(run.unfinished, "a checkpoint that is being written", tick=0.0005)
    _signal_one(lambda: workers, random, signal.SIGKILL)


def kill_during_start(run: DisturbedRun, random: Random) -> None:
    """A rank is killed, and another one up to 0.8 s after all were started again."""
    before = run.workers()
    _signal_one(lambda: before, random, signal.SIGKILL)

    def new_workers() -> dict[int, int]:
        now = worker_pids(run.logs)
        return {} if set(now.values()) & set(before.values()) else now

    run.wait_for(new_workers, "workers of another round")
    time.sleep(random.uniform(0.0, _LONGEST_START_SECONDS))
    _signal_one(run.workers, random, signal.SIGKILL)


def flip_byte(run: DisturbedRun, random: Random) -> None:
    """A byte of the newest checkpoint is another one; then a rank is killed."""

    def flip(path: Path) -> None:
        place = random.randrange(path.stat().st_size)
        with path.open("r+b") as stream:
            stream.seek(place)
            (byte,) = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte ^ (1 << random.randrange(8))]))

    _damage_newest(run, random, flip)


def delete_file(run: DisturbedRun, random: Random) -> None:
    """A file of the newest checkpoint is deleted; then a rank is killed."""
    _damage_newest(run, random, Path.unlink)


def fill_disk(run: DisturbedRun, random: Random) -> None:
    """The disk of the run directory is full until the run has failed of that."""
    filling = run.recipe.directory.parent / "filling"
    said = len(run.words)

    def has_failed(words: str) -> bool:
        return "starting again" in words and ("is full" in words or "No space left" in words)

    time.sleep(random.uniform(0.0, 0.1))
    try:
        with suppress(OSError), filling.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(_FILL_BYTES))
        with suppress(OSError), filling.open("ab", buffering=0) as stream:
            while True:
                stream.write(bytes(1))
        run.wait_for(lambda: has_failed(run.words[said:]), "words about a full disk")
    finally:
        filling.unlink(missing_ok=True)


FAULTS: dict[str, Fault] = {
    "worker killed": kill_worker,
    "killed while saving": kill_during_save,
    "killed while starting": kill_during_start,
    "agent killed": kill_agent,
    "node killed": kill_node,
    "worker stopped": stop_worker,
    "node stopped": stop_agent,
    "byte flipped": flip_byte,
    "file deleted": delete_file,
    "disk full": fill_disk,
}
"""By the name that tables give them."""

EVIDENCE = {
    "agent killed": "node_lost",
    "node killed": "node_lost",
    "worker stopped": "hang",
    "node stopped": "node_lost",
    "byte flipped": "damaged_checkpoint",
    "file deleted": "damaged_checkpoint",
}
"""An event that the run must have written after a fault: else it was not hit."""


def _signal_one(processes: Callable[[], dict[int, int] | list[int]], random: Random, number: int) -> None:
    """Send a signal to one of some processes that change meanwhile."""
    while True:
        found = processes()
        pid = random.choice([found[key] for key in sorted(found)] if isinstance(found, dict) else found)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return


def _damage_newest(run: DisturbedRun, random: Random, damage: Callable[[Path], None]) -> None:
    """Damage a file of the newest checkpoint while all ranks stand still, so that no newer one comes; then kill one."""
    workers = run.workers()
    for pid in workers.values():
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGSTOP)
    newest = run.complete()[-1]
    damage(random.choice(sorted(path for path in newest.iterdir() if path.stat().st_size)))
    _signal_one(lambda: workers, random, signal.SIGKILL)
