"""The coordinator of a run: it knows all nodes, and alone decides what they do.

Agents connect to it and introduce their nodes. It gives out ranks, hears how they end, and starts the next round:
on the nodes that are left when one is lost, on all when one comes back. One process sees everything, so nobody has to
agree with anybody: a restart waits for no time-out where a connection broke, and the first cause is known with its
node. It runs where the launch command runs (the first node of a Slurm job), where torch's elastic launch would need
its store anyway; each round has a store of its own, in this process, so that no rank finds an address of the dead.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launcher.elastic.address import Address
from launcher.elastic.agents import Agents
from launcher.elastic.entrance import Entrance
from launcher.elastic.hangs import is_hanging, latest_rank
from launcher.elastic.members import Member, Members
from launcher.elastic.rounds import Round, Seat
from launcher.elastic.wire import Message, Wire
from launcher.elastic.work import Assignment, Work
from launcher.failures import Failure, Kind, remove_failures

_TICK_SECONDS = 0.05
_PING_SECONDS = 1.0
_SETTLE_SECONDS = 0.3
_STACKS_SECONDS = 3.0
_LOOK_SECONDS = 15.0
_FAREWELL_SECONDS = 5.0
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
        self._host = host
        self._port = port
        self._patience = patience
        self._event = event
        self._say = say
        self._members = Members()
        self._entrance = Entrance()
        self._look_until: float | None = None
        self._strangers: list[Wire] = []
        self._selector = selectors.DefaultSelector()
        self._token = secrets.token_hex(16)
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
        self._looked = self._pinged = time.monotonic()

    def request_stop(self, number: int) -> None:
        """Have workers finish after their step; a second time: kill them. For signal handlers."""
        self._stops.append(number)

    def serve(self, start: Callable[[], Agents]) -> Ending:
        """Work until it is done, or cannot go on.

        Args:
            start: called when agents can come; starts them, unless somebody else does.
        """
        with self._server() as server:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ)
            Address(self._host, server.getsockname()[1], self._token).write(self._logs)
            agents = start()
            try:
                while self._ending is None:
                    self._tick(server, agents)
            finally:
                Address.remove(self._logs)
                self._say_goodbye()
                self._selector.close()
                agents.end()
        return replace(self._ending, bad_nodes=tuple(self._entrance.bad))

    def _server(self) -> socket.socket:
        here = "127.0.0.1" if self._host == "127.0.0.1" else ""
        try:
            return socket.create_server((here, self._port), backlog=4096)
        except OSError as error:
            raise UserError(f"port {self._port} cannot be had here ({error.strerror}); start again") from None

    def _tick(self, server: socket.socket, agents: Agents) -> None:
        self._listen(server)
        self._forgive_own_pause()
        self._notice_silence()
        self._pass_stops_on()
        if self._round is not None:
            self._look_after(self._round)
        for node in () if self._ending is not None else agents.tend():
            self._members.expect(node, self._patience.rejoin)
        if self._round is None and self._ending is None:
            self._begin_if_ready(agents.may_come)

    # Who is here

    def _listen(self, server: socket.socket) -> None:
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.fileobj is server:
                self._welcome(server)
            elif isinstance(key.fileobj, Wire):
                self._hear(key.fileobj, key.data)
        now = time.monotonic()
        pings = now - self._pinged > _PING_SECONDS
        self._pinged = now if pings else self._pinged
        for member in self._members.all():
            member.wire.send("ping") if pings else member.wire.flush()

    def _welcome(self, server: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            self._selector.register(Wire(connection), selectors.EVENT_READ)

    def _hear(self, wire: Wire, member: Member | None) -> None:
        for message in wire.receive():
            if member is None:
                member = self._introduced(wire, message)
                continue
            member.heard = time.monotonic()
            self._take(member, message)
        if wire.is_closed:
            with suppress(KeyError, ValueError):
                self._selector.unregister(wire)
            if member is not None and self._members.find(member.node) is member:
                self._lose(member, "the connection to its agent broke")

    def _introduced(self, wire: Wire, message: Message) -> Member | None:
        """A stranger's first words: a member from now on, or nobody."""
        if message["kind"] == "apart":
            self._leave_out(str(message.get("node")), str(message.get("reason")))
            wire.close()
            return None
        if not hmac.compare_digest(str(message.get("token", "")), self._token):
            wire.close()
            return None
        if message["kind"] == "returning":
            self._members.expect(message["node"], self._patience.rejoin)
            self._say(f"node {message['node']}: its agent died and is coming back")
            return None
        member = Member(message["node"], message["processes"], wire)
        before = self._members.find(member.node)
        if before is not None:
            self._lose(before, "its agent came anew")
        self._selector.modify(wire, selectors.EVENT_READ, member)
        self._members.add(member)
        self._event("node_joined", node=member.node, processes=member.processes)
        if message.get("report") is not None:
            self._entrance.came(member.node, message["report"])
            if self._rounds:
                self._let_look([member])
        else:
            self._make_way_if_better()
        return member

    def _take(self, member: Member, message: Message) -> None:
        if message["kind"] == "stop":
            self.request_stop(message["signal"])
        if message["kind"] == "looked":
            self._entrance.looked(member.node, message["missing"])
            self._judge()
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

    def _lose(self, member: Member, why: str) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(member.wire)
        self._members.remove(member)
        self._entrance.went(member.node)
        self._event("node_lost", node=member.node, cause=why)
        if self._round is not None:
            self._round.lose_node(member.node, why)
        self._pause_until = max(self._pause_until, time.monotonic() + _SETTLE_SECONDS)

    def _notice_silence(self) -> None:
        for member in self._members.all():
            silence = time.monotonic() - member.heard
            if silence > self._patience.silence:
                self._lose(member, f"its agent said nothing for {silence:.0f} s")

    def _forgive_own_pause(self) -> None:
        """Who was stopped itself must not blame others for a silence that it could not have heard."""
        now = time.monotonic()
        pause = now - self._looked
        self._looked = now
        if pause > self._patience.silence / 3:
            for member in self._members.all():
                member.heard += pause

    # Who may take part

    def _let_look(self, members: Sequence[Member]) -> None:
        """Have nodes look for what all others left in the run directory."""
        nodes = [member.node for member in self._members.all()]
        for member in members:
            member.wire.send("look", nodes=nodes, examination=self._token[:8])

    def _is_examining(self) -> bool:
        """Whether some node still looks; they are asked as soon as all are here."""
        unseen = self._entrance.unseen([member.node for member in self._members.all()])
        now = time.monotonic()
        if unseen and self._look_until is None:
            self._look_until = now + _LOOK_SECONDS
            self._let_look(self._members.all())
        elif self._look_until is not None and now > self._look_until:
            for node in unseen:
                self._leave_out(node, "did not answer when it was examined")
            return False
        return bool(unseen)

    def _judge(self) -> None:
        """When all have looked: who is bad is sent away."""
        if self._entrance.unseen([member.node for member in self._members.all()]):
            return
        verdict = self._entrance.judge()
        for warning in verdict.warnings:
            self._say(f"warning: {warning}")
        for node, reason in verdict.bad.items():
            self._leave_out(node, reason)
        self._make_way_if_better()

    def _leave_out(self, node: str, reason: str) -> None:
        self._entrance.exclude(node, reason)
        self._event("bad_node", node=node, reason=reason)
        self._say(f"node {node} is left out: {reason}")
        member = self._members.find(node)
        if member is not None and (self._round is None or node not in self._round.nodes):
            member.wire.send("bye")
            self._selector.unregister(member.wire)
            self._members.remove(member)

    # What they do

    def _begin_if_ready(self, may_come: Callable[[], bool]) -> None:
        if self._stops:
            self._ending = Ending()
            return
        now = time.monotonic()
        wanted = self._most if self._rounds else self._expected
        all_here = len(self._members) + len(self._entrance.bad) >= wanted
        gathers = now < self._gather_until and may_come()
        if now < self._pause_until or (not all_here and (gathers or self._members.is_one_returning())):
            return
        if self._is_examining():
            return
        assignment, problem = self._assignment()
        if assignment is not None:
            self._begin(assignment)
        elif now > self._give_up_at or not may_come() or self._entrance.bad:
            self._ending = Ending(self._last_failure or Failure(-1, time.time(), Kind.USER, problem), too_few=True)

    def _assignment(self) -> tuple[Assignment | None, str]:
        """What the nodes that are here can do, or why they can do nothing."""
        if len(self._members) < self._least:
            here = ", ".join(member.node for member in self._members.all()) or "none"
            bad = "".join(f"; {node} was left out: {reason}" for node, reason in self._entrance.bad.items())
            return None, f"{self._least} nodes are needed and {len(self._members)} came ({here}); bring more{bad}"
        try:
            return self._work.assign(self._members.processes, self._members.device_memory), ""
        except UserError as error:
            return None, str(error)

    def _begin(self, assignment: Assignment) -> None:
        from torch._C._distributed_c10d import TCPStore

        remove_failures(self._logs)
        self._members.seat()
        store = TCPStore(self._host, 0, None, True, wait_for_workers=False)
        round_ = Round(self._rounds, self._seats(assignment.world_size), assignment.layout, store)
        for seat in round_.seats:
            member = self._members.find(seat.node)
            assert member is not None
            member.wire.send(
                "start",
                round=round_.number,
                entry=self._work.entry,
                payload=assignment.payload,
                world_size=assignment.world_size,
                first_rank=seat.ranks.start,
                processes=len(seat.ranks),
                host=self._host,
                port=store.port,
                silence=4 * self._patience.silence,
            )
        self._round = round_
        self._rounds += 1
        self._gather_until = 0.0
        spares = [member.node for member in self._members.all() if member.node not in round_.nodes]
        self._event(
            "round",
            number=round_.number,
            nodes=round_.nodes,
            world_size=round_.world_size,
            layout=round_.layout,
            spares=spares,
        )
        if len(self._members) > 1 or self._rounds > 1:
            spare = f"; to spare: {', '.join(spares)}" if spares else ""
            self._say(f"round {round_.number}: {round_.world_size} processes on {', '.join(round_.nodes)}{spare}")

    def _seats(self, world_size: int) -> list[Seat]:
        seats, first = [], 0
        for member in self._members.all():
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
        for node in round_.nodes:
            member = self._members.find(node)
            if member is not None:
                member.wire.send(kind, round=round_.number)

    def _say_goodbye(self) -> None:
        """Tell the agents that all is over, and give the words time to arrive."""
        for member in self._members.all():
            member.wire.send("bye")
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while any(not member.wire.is_closed for member in self._members.all()) and time.monotonic() < deadline:
            for member in self._members.all():
                member.wire.flush()
                member.wire.receive()
            time.sleep(_TICK_SECONDS)


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
