"""One rank of a run, in a process that an agent has forked: log, link, run, and what it leaves when it fails."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from launcher.failures import Failure, write_failure
from launcher.logs import open_log
from ptm_dist.training.link import Phase
from ptm_dist.training.world import World

STACK_SIGNAL = signal.SIGUSR2
"""Has a worker write the Python stacks of all its threads to :func:`stack_path`."""

_PR_SET_PDEATHSIG = 1


class WorkerLink:
    """A worker's line to its agent: :class:`ptm_dist.training.link.Link`.

    Args:
        line: datagrams, never waited for: what the agent cannot take is lost, and the next report tells more.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._asked = False
        self.phase, self.step = Phase.BUILD, 0

    def report(self, phase: Phase, step: int) -> None:
        """Tell the agent what begins now."""
        self.phase, self.step = phase, step
        self._send({"phase": phase, "step": step})

    def is_asked_to_leave(self) -> bool:
        """Whether the agent has asked, now or before."""
        with suppress(OSError):
            self._asked = self._line.recv(64) == b"leave" or self._asked
        return self._asked

    def tell_outcome(self, outcome: dict[str, Any]) -> None:
        """Say how the run ended, just before this process does."""
        self._send({"outcome": outcome})

    def tell_failure(self, failure: Failure) -> None:
        """Say why this process ends, without its traceback, which only fits in a file."""
        self._send({"failure": replace(failure, traceback="").as_json()})

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):
            self._line.send(json.dumps(message).encode())


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        payload: for the entry function.
        world: which rank of how many this process is.
        link: to the agent.
        logs: folder of the run's logs.
        attempt: number of this start of all ranks, from 0.
    """

    payload: dict[str, Any]
    world: World
    link: WorkerLink
    logs: Path
    attempt: int


Entry: TypeAlias = Callable[[Job], None]


def train(job: Job) -> None:
    """Run a recipe; afterwards rank 0 says and writes how it ended."""
    from launcher.outcome import ending, write_outcome
    from ptm_dist.recipe.schema import Recipe
    from ptm_dist.training.processes import settle
    from ptm_dist.training.run import run

    recipe = Recipe.model_validate(job.payload)
    settle(recipe.launch.device)
    summary = run(recipe, job.world, job.link)
    if job.world.rank == 0:
        job.link.tell_outcome({"makes_way": summary.makes_way, "step": summary.step})
        if not summary.makes_way:
            write_outcome(summary)
            print(ending(summary))


def live(entry: Entry, job: Job, agent: int) -> NoReturn:
    """A worker's whole life, from the fork to its exit code: 0, 2 for a user's mistake, 1 for anything else.

    A failure is written beside the logs and ends the process at once: a slow teardown would only delay what the
    other ranks learn.
    """
    die_with_agent(agent)
    keep_early_signals()
    _describe_world(job)
    log = open_log(job.logs, job.world.rank, job.attempt)
    with stack_path(job.logs, job.world.rank).open("w", encoding="utf-8") as stacks:
        faulthandler.register(STACK_SIGNAL, stacks, all_threads=True)
        try:
            entry(job)
        except Exception as error:
            failure = Failure.of(job.world.rank, error)
            job.link.tell_failure(failure)
            with suppress(OSError):  # a disk that is full has no room for words either
                write_failure(job.logs, failure)
                log.write(failure.traceback or f"error: {failure.message}\n")
            _leave(2 if failure.is_explained else 1)
        _leave(0)


def stack_path(logs: Path, rank: int) -> Path:
    """Where a worker writes its stacks when it is told to."""
    return logs / f"stack_rank{rank}.txt"


def recorder_pipe(pid: int, rank: int) -> Path:
    """What torch's NCCL watchdog reads in a worker: a byte written to it has it write down its last collectives."""
    return Path(f"{_recorder_prefix(pid)}{rank}.pipe")


def _recorder_prefix(pid: int) -> str:
    return f"{tempfile.gettempdir()}/ptm-nccl-{pid}-"


def die_with_agent(agent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, so that kill -9 leaves no orphan (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:
        _leave(1)


def keep_early_signals() -> None:
    """A stop signal that comes before anybody can act on it waits until somebody can."""

    def deliver_later(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=_deliver_again, args=(number, deliver_later), daemon=True).start()

    signal.signal(signal.SIGTERM, deliver_later)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _deliver_again(number: int, early_handler: object) -> None:
    while signal.getsignal(number) is early_handler:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def _describe_world(job: Job) -> None:
    """The usual variables, for libraries that look at them; and where NCCL's flight recorder writes."""
    world = job.world
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.world_size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_world_size),
        MASTER_ADDR=world.master_addr,
        MASTER_PORT=str(world.master_port),
        TORCH_NCCL_DEBUG_INFO_PIPE_FILE=_recorder_prefix(os.getpid()),
        TORCH_NCCL_DEBUG_INFO_TEMP_FILE=str(job.logs / "nccl_trace_rank"),
    )


def _leave(code: int) -> NoReturn:
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
