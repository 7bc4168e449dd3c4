"""Torch's elastic agent with our manners: first cause first, no orphans, signals mean checkpoint and leave."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from launcher.failures import Exit, Failure, Kind

CauseFinder = Callable[[Sequence[Exit]], Failure]

# How long ranks may take to notice that another one is gone, and to write down what they saw.
_GRACE_SECONDS = 5.0
_MONITOR_SECONDS = 0.1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LocalAgent(LocalElasticAgent):
    """Starts workers on this machine, watches them, restarts them all when one fails.

    It differs from torch's own agent in three points: survivors of a failure that hang in a collective are ended
    after seconds, not after half a minute; a user's mistake is never retried; and a stop signal is passed on to
    the workers, which checkpoint and finish, while the agent goes on watching.
    """

    def __init__(self, spec: WorkerSpec, first_cause: CauseFinder, on_restart: Callable[[Failure, int], None]) -> None:
        """Prepare; :meth:`run` starts the workers.

        Args:
            spec: what to run, and how often.
            first_cause: why an attempt failed, from the ranks that ended by themselves and not well.
            on_restart: told the cause of a failed attempt and the number of restarts left after this one.
        """
        super().__init__(spec, InheritedOutput(), exit_barrier_timeout=1)
        self.failure: Failure | None = None
        self._first_cause = first_cause
        self._on_restart = on_restart
        self._stop_requests = 0
        self._told: set[int] = set()

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first time workers are asked to finish, the second time they are killed."""
        self._stop_requests += 1

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = {int(worker.id): worker.global_rank for worker in worker_group.workers}
        if self._stop_requests:
            self._pass_stop_on(ranks)
        exits = self._end_all(ranks) if any(_exit_codes(ranks).values()) else []
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            # Without exits of ours the failure fell between the two looks, and elastic ended the others.
            self._note(exits or _exits_of(result))
        return result

    def _note(self, exits: Sequence[Exit]) -> None:
        self.failure = self._first_cause(exits)
        if self._stop_requests or self.failure.kind is Kind.USER:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            self._on_restart(self.failure, self._remaining_restarts - 1)

    def _pass_stop_on(self, ranks: dict[int, int]) -> None:
        for pid in ranks.keys() - _exit_codes(ranks).keys():
            if self._stop_requests > 1:
                os.killpg(pid, signal.SIGKILL)
            elif pid not in self._told:
                # The worker alone, not its group: its loader processes end when it tells them.
                os.kill(pid, signal.SIGTERM)
                self._told.add(pid)

    def _end_all(self, ranks: dict[int, int]) -> list[Exit]:
        """Let the others fail by themselves, then kill them; the exits of those that failed."""
        exits: dict[int, Exit] = {}
        deadline = time.monotonic() + _GRACE_SECONDS
        while True:
            codes = _exit_codes(ranks)
            for pid, code in codes.items():
                if code != 0:
                    exits.setdefault(pid, Exit(ranks[pid], code, time.time() - _MONITOR_SECONDS))
            if len(codes) == len(ranks) or time.monotonic() > deadline:
                break
            time.sleep(_MONITOR_SECONDS / 2)
        for pid in ranks.keys() - codes.keys():
            os.killpg(pid, signal.SIGKILL)
        return list(exits.values())


class InheritedOutput(LogsSpecs):
    """Workers keep the terminal of their parent: each redirects itself, see :mod:`launcher.logs`."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """No file for any rank."""
        return LogsDest(
            stdouts=dict.fromkeys(envs, ""),
            stderrs=dict.fromkeys(envs, ""),
            error_files=dict.fromkeys(envs, ""),
        )

    @property
    def root_log_dir(self) -> str:
        """Asked by elastic; there are no files."""
        return os.devnull


def local_spec(entrypoint: str, arguments: tuple[str, ...], nproc: int, max_restarts: int) -> WorkerSpec:
    """What to run on this machine: `nproc` processes that meet at a store of their own.

    Each attempt must have a fresh store, as a shared one keeps stale addresses (pytorch/pytorch issue 135712):
    the caller sets TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 while it runs the agent.
    """
    rendezvous = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        local_addr="localhost",
    )
    return WorkerSpec(
        role="ptm",
        local_world_size=nproc,
        rdzv_handler=get_rendezvous_handler(rendezvous),
        entrypoint=entrypoint,
        args=arguments,
        max_restarts=max_restarts,
        monitor_interval=_MONITOR_SECONDS,
        local_addr="localhost",
    )


@contextmanager
def stop_signals_go_to(agent: LocalAgent) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (unless ignored, as under nohup) ask the agent's workers to finish."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, agent.request_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def silence_elastic() -> None:
    """Elastic's own account of failures, which names victims first, gives way to ours."""
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _exit_codes(ranks: dict[int, int]) -> dict[int, int]:
    """Exit codes by process id of those that ended; they stay unreaped, which is for elastic to do."""
    codes: dict[int, int] = {}
    for pid in ranks:
        try:
            status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Reaped in an earlier round: elastic goes on after that only if it ended well.
            codes[pid] = 0
            continue
        if status is not None:
            codes[pid] = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
    return codes


def _exits_of(result: RunResult) -> list[Exit]:
    exits = [Exit(rank, failure.exitcode, float(failure.timestamp)) for rank, failure in result.failures.items()]
    return [exit for exit in exits if exit.code != -signal.SIGTERM] or exits
