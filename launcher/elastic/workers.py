"""The worker processes of a node: forked from the agent, which has loaded all libraries already, and watched by it.

A fork takes milliseconds where a new Python with torch takes seconds, which is most of what a restart costs. It is
safe because the agent has one thread and never computes anything.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from launcher.elastic.hangs import Beat
from launcher.failures import Exit, Failure, read_failure
from launcher.worker import Entry, Job, WorkerLink, live, recorder_pipe
from ptm_dist.training.link import Phase
from ptm_dist.training.world import World

_DATAGRAM_BYTES = 1 << 16


@dataclass
class Worker:
    """A process that computes one rank.

    Attributes:
        world: which rank of how many.
        pid: of the process.
        line: datagrams from it and to it.
        phase: it reported last, with `step`, at `heard` (monotonic).
        step: see phase.
        heard: see phase.
        began_at: steps that were done when it began to compute, None before that.
        outcome: what it said of its end, if it did.
        said: why it failed, in its own words, if it did.
        exit: how it ended, None while it lives.
    """

    world: World
    pid: int
    line: socket.socket
    phase: Phase = Phase.BUILD
    step: int = 0
    heard: float = field(default_factory=time.monotonic)
    began_at: int | None = None
    outcome: dict[str, Any] | None = None
    said: Failure | None = None
    exit: Exit | None = None

    def listen(self) -> None:
        """Take in what it said since the last time."""
        while True:
            try:
                message = json.loads(self.line.recv(_DATAGRAM_BYTES))
            except (BlockingIOError, ConnectionError, ValueError):
                return
            if "outcome" in message:
                self.outcome = message["outcome"]
            elif "failure" in message:
                self.said = Failure.from_json(message["failure"])
            else:
                self._hear(Phase(message["phase"]), int(message["step"]))

    def _hear(self, phase: Phase, step: int) -> None:
        self.phase, self.step, self.heard = phase, step, time.monotonic()
        if phase is Phase.DATA and self.began_at is None:
            self.began_at = step

    def beat(self) -> Beat:
        """What it said last, and how it is."""
        return Beat(self.phase, self.step, time.monotonic() - self.heard, _state(self.pid))

    def ask_to_leave(self) -> None:
        """Have it end with the next checkpoint."""
        with suppress(OSError):
            self.line.send(b"leave")

    def send(self, number: int, *, to_group: bool = False) -> None:
        """Signal it, with its own children if asked."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number) if to_group else os.kill(self.pid, number)

    def ask_flight_recorder(self) -> None:
        """Have NCCL write down its last collectives, if this worker uses it."""
        with suppress(OSError):
            pipe = os.open(recorder_pipe(self.pid, self.world.rank), os.O_WRONLY | os.O_NONBLOCK)
            os.write(pipe, b"1")
            os.close(pipe)

    def has_ended(self) -> bool:
        """Whether it ended since the last time this was asked; then :attr:`exit` says how."""
        if self.exit is not None:
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.listen()
        self.line.close()
        recorder_pipe(self.pid, self.world.rank).unlink(missing_ok=True)
        self.exit = Exit(self.world.rank, os.waitstatus_to_exitcode(status), time.time())
        self.send(signal.SIGKILL, to_group=True)  # loader processes that it left behind
        return True

    def failure(self, logs: Path) -> Failure | None:
        """Why it ended, if not well: in its own words, or by its exit code."""
        if self.exit is None or self.exit.code == 0:
            return None
        failure = read_failure(logs, self.world.rank) or self.said or self.exit.failure()
        return replace(failure, node=self.world.node, place=f"in phase {self.phase} after step {self.step}")


def fork_workers(
    entry: str, payload: dict[str, Any], worlds: Iterable[World], logs: Path, attempt: int
) -> list[Worker]:
    """Start a process for each world.

    Args:
        entry: `module:function` of a :data:`launcher.worker.Entry`.
        payload: what it is given.
        worlds: of the ranks of this node.
        logs: folder of the run's logs.
        attempt: number of this start, from 0.
    """
    function = load_entry(entry)
    workers: list[Worker] = []
    for world in worlds:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        sys.stdout.flush()
        sys.stderr.flush()
        agent = os.getpid()
        pid = os.fork()
        if pid == 0:
            for line in (ours, *(worker.line for worker in workers)):
                line.close()
            _become(function, Job(payload, world, WorkerLink(theirs), logs, attempt), agent)
        theirs.close()
        workers.append(Worker(world, pid, ours))
    return workers


def load_entry(entry: str) -> Entry:
    """The function that `module:function` names."""
    module, _, name = entry.partition(":")
    function: Entry = getattr(importlib.import_module(module), name)
    return function


def _become(function: Entry, job: Job, agent: int) -> NoReturn:
    try:
        os.setsid()
        live(function, job, agent)
    finally:
        os._exit(1)  # whatever happens, nothing of the agent runs twice


def _state(pid: int) -> str:
    """Letter that the kernel has for a process, empty where it tells nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]
