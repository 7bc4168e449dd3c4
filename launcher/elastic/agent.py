"""The agent of a node: `python -m launcher.elastic.agent LOGS --processes N`. It does what the coordinator says.

It starts workers, passes requests on to them, and tells how they are and how they end. When the coordinator goes
away, or is silent for long, it kills them: somewhere else a new world may be at work in the same run directory.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

from launcher.doctor.findings import NodeReport
from launcher.doctor.node import examine_node, node_name
from launcher.doctor.tokens import missing_tokens, remove_token, write_token
from launcher.elastic.address import complain, connect
from launcher.elastic.keeper import APART, LOST
from launcher.elastic.wire import Message, Wire
from launcher.elastic.workers import Worker, fork_workers
from launcher.worker import STACK_SIGNAL, die_with_agent, stack_path
from ptm_dist.training.world import World

_TICK_SECONDS = 0.1
_BEAT_SECONDS = 1.0
_STACK_SECONDS = 1.0
_LONGEST_STACK = 16_000
# What workers need, loaded once: see launcher.elastic.workers.
_WARM = ("launcher.worker", "ptm_dist.training.run", "ptm_dist.engines", "launcher.outcome")


class Agent:
    """What a node does for one coordinator.

    Args:
        wire: to the coordinator, which has let this agent in.
        node: name of this node.
        logs: folder of the run's logs.
        alive: file descriptor that gets a byte now and then, for who watches over the agent; None: nobody does.
    """

    def __init__(self, wire: Wire, node: str, logs: Path, alive: int | None) -> None:
        self._wire = wire
        self._node = node
        self._logs = logs
        self._alive = alive
        self._round = -1
        self._workers: list[Worker] = []
        self._heard = self._beaten = time.monotonic()
        self._silence = 60.0
        self._stacks_due: float | None = None
        self._code: int | None = None
        self._stopped_by = 0

    def run(self) -> int:
        """Serve until the coordinator says goodbye or is lost; returns the exit code of the agent."""
        selector = selectors.DefaultSelector()
        selector.register(self._wire, selectors.EVENT_READ)
        while self._code is None:
            selector.select(_TICK_SECONDS)
            self._obey()
            self._look_after_workers()
            self._tell_that_alive()
            is_lost = self._wire.is_closed or time.monotonic() - self._heard > self._silence
            if self._code is None and is_lost:  # who says goodbye closes the connection too
                self._code = LOST
        self._kill()
        selector.close()
        self._wire.close()
        return self._code

    def stop_signal(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: somebody wants this node to finish, which is for the coordinator to decide."""
        self._stopped_by = number

    def _obey(self) -> None:
        for message in self._wire.receive():
            self._heard = time.monotonic()
            match message["kind"]:
                case "start":
                    self._start(message)
                case "leave":
                    for worker in self._living():
                        worker.ask_to_leave()
                case "stop":
                    for worker in self._living():
                        worker.send(signal.SIGTERM)
                case "kill":
                    self._kill()
                case "stacks":
                    self._ask_for_stacks()
                case "look":
                    unseen = missing_tokens(self._logs.parent, message["others"], message["examination"])
                    self._wire.send("looked", missing=sorted(unseen))
                case "bye":
                    self._code = 0

    def _start(self, message: Message) -> None:
        self._kill()
        self._round = message["round"]
        self._silence = message["silence"]
        self._stacks_due = None
        self._workers = fork_workers(
            message["entry"], message["payload"], self._worlds(message), self._logs, self._round
        )

    def _worlds(self, message: Message) -> Iterator[World]:
        for local_rank in range(message["processes"]):
            yield World(
                rank=message["first_rank"] + local_rank,
                world_size=message["world_size"],
                local_rank=local_rank,
                local_world_size=message["processes"],
                master_addr=message["host"],
                master_port=message["port"],
                origin="ptm",
                node=self._node,
                has_store=True,
            )

    def _living(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.exit is None]

    def _look_after_workers(self) -> None:
        for worker in self._living():
            worker.listen()
            if worker.has_ended():
                self._tell_end(worker)
        if self._stacks_due is not None and time.monotonic() > self._stacks_due:
            self._stacks_due = None
            self._tell_stacks()

    def _tell_end(self, worker: Worker) -> None:
        failure = worker.failure(self._logs)
        self._wire.send(
            "end",
            round=self._round,
            rank=worker.world.rank,
            step=worker.step,
            began_at=worker.began_at,
            outcome=worker.outcome,
            failure=None if failure is None else failure.as_json(),
        )

    def _tell_that_alive(self) -> None:
        if self._alive is not None:
            with suppress(OSError):
                os.write(self._alive, b".")
        if self._stopped_by:
            self._wire.send("stop", signal=self._stopped_by)
            self._stopped_by = 0
        now = time.monotonic()
        if now - self._beaten < _BEAT_SECONDS:
            self._wire.flush()
            return
        self._beaten = now
        beats = {worker.world.rank: worker.beat().as_list() for worker in self._living()}
        self._wire.send("beats", round=self._round, beats=beats)

    def _ask_for_stacks(self) -> None:
        for worker in self._living():
            worker.send(STACK_SIGNAL)
            worker.ask_flight_recorder()
        self._stacks_due = time.monotonic() + _STACK_SECONDS

    def _tell_stacks(self) -> None:
        stacks = {}
        for worker in self._living():
            with suppress(OSError):
                text = stack_path(self._logs, worker.world.rank).read_text(encoding="utf-8", errors="replace")
                stacks[worker.world.rank] = text[-_LONGEST_STACK:]
        self._wire.send("stacks", round=self._round, stacks=stacks)

    def _kill(self) -> None:
        """End all workers at once and tell each end."""
        for worker in self._living():
            worker.send(signal.SIGKILL, to_group=True)
        while self._living():
            self._look_after_workers()
            time.sleep(_TICK_SECONDS / 10)


def main() -> int:
    """Find the coordinator, get ready, introduce this node, and serve."""
    options = _options()
    if options.keeper is not None:
        die_with_agent(options.keeper)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the coordinator gets it too, and decides
    report = _examination(options) if options.examine else None
    _load_libraries()
    found = connect(options.logs, options.seconds)
    if found is None:
        is_apart = not options.logs.is_dir()
        complain(options.logs, options.node)
        print(f"{options.node}: no coordinator answered that {options.logs} names", file=sys.stderr)
        return APART if is_apart else LOST
    connection, address = found
    wire = Wire(connection)
    agent = Agent(wire, options.node, options.logs, options.alive)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, agent.stop_signal)
    if report is not None:
        write_token(options.logs.parent, options.node, address.token[:8])
        report = report.stamped()
    wire.send(
        "hello",
        token=address.token,
        node=options.node,
        processes=options.processes,
        report=None if report is None else report.as_json(),
    )
    try:
        return agent.run()
    finally:
        if report is not None:
            remove_token(options.logs.parent, options.node, address.token[:8])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.elastic.agent")
    parser.add_argument("logs", type=Path, help="folder of the run's logs")
    parser.add_argument("--processes", type=int, default=1, help="workers that this node can run")
    parser.add_argument("--examine", action="store_true", help="look at this node first: one of several")
    parser.add_argument("--node", default=node_name())
    parser.add_argument("--seconds", type=float, default=300.0, help="to look for a coordinator")
    parser.add_argument("--keeper", type=int, help="process without which this one shall not live")
    parser.add_argument("--alive", type=int, help="file descriptor to write to while alive")
    return parser.parse_args()


def _examination(options: argparse.Namespace) -> NodeReport:
    folder = options.logs.parent
    return examine_node(folder if folder.is_dir() else None, node=options.node)


def _load_libraries() -> None:
    for module in _WARM:
        __import__(module)


if __name__ == "__main__":
    sys.exit(main())
