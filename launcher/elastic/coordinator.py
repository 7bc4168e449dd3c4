"""The coordinator of a run: it knows all nodes, and alone decides what they do.

Agents connect to it and introduce their nodes (gathering.py). It gives out ranks, hears how they end, and starts the
next round: on the nodes that are left when one is lost, on all when one comes back. One process sees everything, so
nobody has to agree with anybody: a restart waits for no time-out where a connection broke, and the first cause is known
with its node. It runs where the launch command runs (the first node of a Slurm job), where torch's elastic launch would
need its store anyway; each round has a store of its own, in this process, so that no rank finds an address of the dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launcher.elastic.agents import Agents
from launcher.elastic.gathering import Gathering
from launcher.elastic.hangs import is_hanging, latest_rank
from launcher.elastic.rounds import Round, Seat
from launcher.elastic.wire import Message
from launcher.elastic.work import Assignment, Work
from launcher.failures import Failure, Kind, remove_failures

_SETTLE_SECONDS = 0.3
_STACKS_SECONDS = 3.0
_LONGEST_PAUSE_SECONDS = 30.0
_PASSING_SECONDS = 5.0
_LONGEST_PASSING_SECONDS = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a coordinator waits for what.

    Attributes:
        gather: seconds for all nodes to come at the start, before it begins with fewer.
        wait: seconds with too few nodes, after which it gives up.
        rejoin: seconds for a node that said it comes back.
        silence: seconds without a word after which a node is lost, and without a coordinator after which agents end.
        step: seconds without progress of any rank between first and last step, after which the round hangs.
        start: the same while ranks build, load or save.
        stopped: seconds that a process may be stopped by a signal.
        restarts: rounds in a row that may fail without a new step.
    """

    gather: float = 300.0
    wait: float = 600.0
    rejoin: float = 60.0
    silence: float = 15.0
    step: float = 600.0
    start: float = 1800.0
    stopped: float = 60.0
    restarts: int = 3


@dataclass(frozen=True)
class Ending:
    """How it all ended.

    Attributes:
        failure: why the last round failed, or why there was none; None if all went well.
        too_few: it failed for want of nodes: with more of them the same command goes on.
        bad_nodes: that were left out.
    """

    failure: Failure | None = None
    too_few: bool = False
    bad_nodes: tuple[str, ...] = ()


class Coordinator:
    """Runs one piece of work to its end.

    Args:
        work: what to do.
        nodes: least and most nodes to do it on.
        expected: how many to wait for at the start.
        logs: folder of the run's logs, which all nodes see.
        host: name or number under which other nodes reach this machine.
        port: to listen on; 0: any that is free.
        patience: how long to wait for what.
        event: told what happens, for the run's history.
        say: told the same in words, for people.
    """

    def __init__(
        self,
        work: Work,
        nodes: tuple[int, int],
        expected: int,
        logs: Path,
        host: str,
        port: int,
        patience: Patience,
        event: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self._work = work
        self._least, self._most = nodes
        self._expected = min(expected, self._most)
        self._logs = logs
        self._patience = patience
        self._event = event
        self._say = say
        self._gathering = Gathering(logs, host, port, patience.silence, patience.rejoin, self, event, say)
        self._round: Round | None = None
        self._rounds = 0
        self._best_step = self._best_start = -1
        self._restarts = 0
        self._last_failure: Failure | None = None
        self._stops: list[int] = []
        self._stops_told = 0
        self._gather_until = time.monotonic() + patience.gather
        self._pause_until = 0.0
        self._give_up_at = self._gather_until + patience.wait
        self._ending: Ending | None = None

    def request_stop(self, number: int) -> None:
        """Have workers finish after their step; a second time: kill them. For signal handlers."""
        self._stops.append(number)

    def serve(self, start: Callable[[], Agents]) -> Ending:
        """Work until it is done, or cannot go on.

        Args:
            start: called when agents can come; starts them, unless somebody else does.
        """
        started: list[Agents] = []
        try:
            with self._gathering.open():
                started.append(start())
                while self._ending is None:
                    self._tick(started[0])
        finally:
            for agents in started:
                agents.end()
        return replace(self._ending, bad_nodes=tuple(self._gathering.entrance.bad))

    def _tick(self, agents: Agents) -> None:
        self._gathering.listen()
        self._pass_stops_on()
        if self._round is not None:
            self._look_after(self._round)
        for node in () if self._ending is not None else agents.tend():
            self._gathering.expect(node)
        if self._round is None and self._ending is None:
            self._begin_if_ready(agents.may_come)

    # What the gathering says

    def on_join(self) -> None:
        """A node may take part: perhaps the round should make way for a larger one."""
        self._make_way_if_better()

    def on_loss(self, node: str, why: str) -> None:
        """A node is gone, with its ranks; others may be about to go with it."""
        if self._round is not None:
            self._round.lose_node(node, why)
        self._pause_until = max(self._pause_until, time.monotonic() + _SETTLE_SECONDS)

    def on_message(self, node: str, message: Message) -> None:
        """What an agent says of its workers."""
        if message["kind"] == "stop":
            self.request_stop(message["signal"])
        round_ = self._round
        if round_ is None or message.get("round") != round_.number:
            return
        match message["kind"]:
            case "beats":
                round_.take_beats(message["beats"])
            case "stacks":
                round_.stacks.update({int(rank): text for rank, text in message["stacks"].items()})
            case "end":
                failure = None if message["failure"] is None else Failure.from_json(message["failure"])
                round_.best_step = max(round_.best_step, message["step"])
                round_.began_at = max(round_.began_at, -1 if message["began_at"] is None else message["began_at"])
                round_.outcome = message["outcome"] or round_.outcome
                round_.end_rank(message["rank"], failure)

    def is_computing(self, node: str) -> bool:
        """Whether a node takes part in the round."""
        return self._round is not None and node in self._round.nodes

    # What they do

    def _begin_if_ready(self, may_come: Callable[[], bool]) -> None:
        if self._stops:
            self._ending = Ending()
            return
        now = time.monotonic()
        wanted = self._most if self._rounds else self._expected
        all_here = len(self._gathering.members) + len(self._gathering.entrance.bad) >= wanted
        waits = may_come() and (now < self._gather_until or self._gathering.members.is_one_returning())
        if now < self._pause_until or (waits and not all_here):
            return
        if self._gathering.is_examining():
            return
        assignment, problem = self._assignment()
        if assignment is not None:
            self._begin(assignment)
        elif now > self._give_up_at or not may_come() or self._gathering.entrance.bad:
            self._ending = Ending(self._last_failure or Failure(-1, time.time(), Kind.USER, problem), too_few=True)

    def _assignment(self) -> tuple[Assignment | None, str]:
        """What the nodes that are here can do, or why they can do nothing."""
        members = self._gathering.members
        if len(members) < self._least:
            here = ", ".join(member.node for member in members.all()) or "none"
            bad = "".join(f"; {node} was left out: {reason}" for node, reason in self._gathering.entrance.bad.items())
            return None, f"{self._least} nodes are needed and {len(members)} came ({here}); bring more{bad}"
        try:
            return self._work.assign(members.processes, members.device_memory), ""
        except UserError as error:
            return None, str(error)

    def _begin(self, assignment: Assignment) -> None:
        from torch._C._distributed_c10d import TCPStore

        remove_failures(self._logs)
        self._gathering.members.seat()
        store = TCPStore(self._gathering.host, 0, None, True, wait_for_workers=False)
        round_ = Round(self._rounds, self._seats(assignment.world_size), assignment.layout, store)
        for seat in round_.seats:
            self._gathering.tell(
                [seat.node],
                "start",
                round=round_.number,
                entry=self._work.entry,
                payload=assignment.payload,
                world_size=assignment.world_size,
                first_rank=seat.ranks.start,
                processes=len(seat.ranks),
                host=self._gathering.host,
                port=store.port,
                silence=4 * self._patience.silence,
            )
        self._round = round_
        self._rounds += 1
        self._gather_until = 0.0
        spares = [member.node for member in self._gathering.members.all() if member.node not in round_.nodes]
        self._event(
            "round",
            number=round_.number,
            nodes=round_.nodes,
            world_size=round_.world_size,
            layout=round_.layout,
            spares=spares,
        )
        if len(self._gathering.members) > 1 or self._rounds > 1:
            spare = f"; to spare: {', '.join(spares)}" if spares else ""
            self._say(f"round {round_.number}: {round_.world_size} processes on {', '.join(round_.nodes)}{spare}")

    def _seats(self, world_size: int) -> list[Seat]:
        seats, first = [], 0
        for member in self._gathering.members.all():
            count = min(member.processes, world_size - first)
            if count:
                seats.append(Seat(member.node, range(first, first + count)))
            first += count
        return seats

    def _make_way_if_better(self) -> None:
        """Ask a round to end with its next checkpoint, if the nodes that are here now would make a larger one."""
        round_ = self._round
        if round_ is None or round_.leaves or round_.deadline is not None or len(round_.nodes) >= self._most:
            return
        assignment, _ = self._assignment()
        if assignment is None or assignment.world_size <= round_.world_size:
            return
        round_.leaves = True
        self._event("grow", world_size=assignment.world_size, layout=assignment.layout)
        self._say(f"with its next checkpoint the run goes on as {assignment.world_size} processes")
        self._tell(round_, "leave")

    def _look_after(self, round_: Round) -> None:
        if round_.is_over:
            self._round = None
            self._conclude(round_)
        elif round_.deadline is not None and time.monotonic() > round_.deadline and not round_.is_killed:
            round_.is_killed = True
            self._tell(round_, "kill")
        elif round_.deadline is None:
            self._notice_hang(round_)

    def _notice_hang(self, round_: Round) -> None:
        now = time.monotonic()
        if round_.stacks_due is not None:
            if now > round_.stacks_due:
                self._break_hang(round_)
            return
        if is_hanging(round_.beats, self._patience.step, self._patience.start, self._patience.stopped):
            round_.stacks_due = now + _STACKS_SECONDS
            self._tell(round_, "stacks")

    def _break_hang(self, round_: Round) -> None:
        """Name the rank that the others wait for, and end the round."""
        if not round_.beats:
            return
        rank = latest_rank(round_.beats, round_.stacks)
        beat, node = round_.beats[rank], round_.node_of(rank)
        self._event("hang", rank=rank, node=node, phase=beat.phase, step=beat.step, seconds=beat.seconds)
        message = f"rank {rank} holds up the others: {beat.describe()}"
        stacks = f"\nPython stacks of all ranks: {self._logs}/stack_rank*.txt" if round_.stacks else ""
        round_.culprit = Failure(rank, time.time(), Kind.ERROR, message + stacks, node=node, place=beat.describe())
        round_.hurry(0.0)

    def _conclude(self, round_: Round) -> None:
        """A round is over: done, or the next one."""
        self._give_up_at = time.monotonic() + self._patience.wait
        if round_.failures:
            cause = round_.cause()
            # A name that all nodes have says nothing.
            self._after_failure(round_, cause if self._most > 1 else replace(cause, node=""))
        elif not (round_.outcome or {}).get("makes_way"):
            self._ending = Ending()

    def _after_failure(self, round_: Round, failure: Failure) -> None:
        """Start again, unless that is of no use or nobody wants it."""
        self._last_failure = failure
        self._event("failure", step=round_.best_step, **_as_event(failure))
        is_passing = failure.kind is Kind.PASSING
        # Steps alone are no progress where they cannot be saved: what counts then is that some were.
        is_new_place = round_.began_at > self._best_start if is_passing else round_.best_step > self._best_step
        never_worked = self._best_step < 0 and round_.best_step == 0 and failure.traceback and not is_passing
        self._best_step = max(self._best_step, round_.best_step)
        self._best_start = max(self._best_start, round_.began_at)
        self._restarts = 1 if is_new_place else self._restarts + 1
        is_in_vain = failure.kind is Kind.USER or never_worked or self._restarts > self._patience.restarts
        if self._stops or is_in_vain:
            self._ending = Ending(failure)
            return
        self._pause_until = max(self._pause_until, time.monotonic() + _pause(self._restarts, is_passing))
        left = self._patience.restarts - self._restarts
        self._event("restart", rank=failure.rank, cause=failure.message, restarts_left=left)
        self._say(f"starting again ({left} more times without a new step) after: {failure.headline()}")

    # Endings

    def _pass_stops_on(self) -> None:
        if len(self._stops) == self._stops_told:
            return
        first = self._stops_told == 0
        self._stops_told = len(self._stops)
        if self._round is None:
            return
        if first:
            self._tell(self._round, "stop")
        else:
            self._round.hurry(0.0)

    def _tell(self, round_: Round, kind: str) -> None:
        self._gathering.tell(round_.nodes, kind, round=round_.number)


def _pause(restarts: int, is_passing: bool) -> float:
    """Seconds before a start, given how many starts in a row got nowhere, this one included."""
    if is_passing:
        return min(_PASSING_SECONDS * restarts, _LONGEST_PASSING_SECONDS)
    return min(2.0 ** (restarts - 2), _LONGEST_PAUSE_SECONDS) if restarts > 1 else 0.0


def _as_event(failure: Failure) -> dict[str, Any]:
    return {
        "rank": failure.rank,
        "node": failure.node,
        "failure": failure.kind,
        "cause": failure.message,
        "place": failure.place,
    }
