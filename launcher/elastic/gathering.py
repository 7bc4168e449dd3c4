"""The nodes of a run come and go: who is here, who is silent, who is fit to take part."""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import UserError
from launcher.elastic.address import Address
from launcher.elastic.entrance import Entrance
from launcher.elastic.members import Member, Members
from launcher.elastic.wire import Message, Wire

_TICK_SECONDS = 0.05
_PING_SECONDS = 1.0
_LOOK_SECONDS = 15.0
_FAREWELL_SECONDS = 5.0


class Listener(Protocol):
    """Who is told what happens among the nodes."""

    def on_join(self) -> None:
        """A node may take part from now on."""
        ...

    def on_loss(self, node: str, why: str) -> None:
        """A node is gone."""
        ...

    def on_message(self, node: str, message: Message) -> None:
        """An agent says something that is not about its coming and going."""
        ...

    def is_computing(self, node: str) -> bool:
        """Whether a node takes part in a round."""
        ...


class Gathering:
    """Listens to agents: lets them in, examines their nodes, notices when they are gone.

    Args:
        logs: folder of the run's logs, where agents find the address.
        host: name or number under which other nodes reach this machine.
        port: to listen on; 0: any that is free.
        silence: seconds without a word after which a node is lost.
        rejoin: seconds for a node that said it comes back.
        listener: told what happens.
        event: told the same, for the run's history.
        say: told the same in words, for people.
    """

    def __init__(
        self,
        logs: Path,
        host: str,
        port: int,
        silence: float,
        rejoin: float,
        listener: Listener,
        event: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self.members = Members()
        self.entrance = Entrance()
        self.host = host
        self._logs = logs
        self._port = port
        self._silence = silence
        self._rejoin = rejoin
        self._listener = listener
        self._event = event
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._token = secrets.token_hex(16)
        self._looked = self._pinged = time.monotonic()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Agents can come while the body runs; at its end they are told to go.

        Raises: UserError if the port is taken.
        """
        with self._server() as server:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ)
            Address(self.host, server.getsockname()[1], self._token).write(self._logs)
            try:
                yield
            finally:
                Address.remove(self._logs)
                self._say_goodbye()
                self._selector.close()

    def listen(self) -> None:
        """Take in what was said, for a moment; often."""
        for key, _ in self._selector.select(_TICK_SECONDS):
            if isinstance(key.fileobj, Wire):
                self._hear(key.fileobj, key.data)
            elif isinstance(key.fileobj, socket.socket):
                self._welcome(key.fileobj)
        now = time.monotonic()
        pings = now - self._pinged > _PING_SECONDS
        self._pinged = now if pings else self._pinged
        for member in self.members.all():
            member.wire.send("ping") if pings else member.wire.flush()
        self._forgive_own_pause()
        self._notice_silence()

    def expect(self, node: str) -> None:
        """A node that is gone is about to come back."""
        self.members.expect(node, self._rejoin)

    def tell(self, nodes: Collection[str], kind: str, **values: Any) -> None:
        """Say something to the agents of some nodes, as far as they are here."""
        for node in nodes:
            member = self.members.find(node)
            if member is not None:
                member.wire.send(kind, **values)

    def is_examining(self) -> bool:
        """Whether some node is not known to be fit yet; have it look around, and leave it out if it does not answer."""
        unseen = self.entrance.unseen([member.node for member in self.members.all()])
        self._let_look([node for node in unseen if not self.entrance.is_asked(node)])
        for node in self.entrance.late(unseen, _LOOK_SECONDS):
            self._leave_out(node, "did not answer when it was examined")
        return bool(unseen)

    def _server(self) -> socket.socket:
        here = "127.0.0.1" if self.host == "127.0.0.1" else ""
        try:
            return socket.create_server((here, self._port), backlog=4096)
        except OSError as error:
            raise UserError(f"port {self._port} cannot be had here ({error.strerror}); start again") from None

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
            if message["kind"] == "looked":
                self.entrance.looked(member.node, message["missing"])
                self._judge()
            else:
                self._listener.on_message(member.node, message)
        if wire.is_closed:
            self._forget(wire)
            if member is not None and self.members.find(member.node) is member:
                self._lose(member, "the connection to its agent broke")

    def _introduced(self, wire: Wire, message: Message) -> Member | None:
        """A stranger's first words: a member from now on, or nobody."""
        if message["kind"] == "apart":
            self._leave_out(str(message.get("node")), str(message.get("reason")))
            wire.close()
            return None
        if not hmac.compare_digest(str(message.get("token", "")).encode(errors="replace"), self._token.encode()):
            wire.close()
            return None
        if message["kind"] == "returning":
            self.expect(message["node"])
            self._say(f"node {message['node']}: its agent died and is coming back")
            return None
        member = Member(message["node"], message["processes"], wire)
        report = message.get("report")
        sizes = [gpu["memory_total"] for gpu in report["gpus"]] if report is not None else []
        member.device_memory = min((size for size in sizes if size is not None), default=None)
        before = self.members.find(member.node)
        if before is not None:
            self._lose(before, "its agent came anew")
        self._selector.modify(wire, selectors.EVENT_READ, member)
        self.members.add(member)
        self._event("node_joined", node=member.node, processes=member.processes)
        if report is None:
            self._listener.on_join()
        else:
            self.entrance.came(member.node, report)
            if self.entrance.is_open:
                self._let_look([member.node])
        return member

    def _lose(self, member: Member, why: str) -> None:
        self._forget(member.wire)
        self.members.remove(member)
        self.entrance.went(member.node)
        self._event("node_lost", node=member.node, cause=why)
        self._listener.on_loss(member.node, why)

    def _forget(self, wire: Wire) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(wire)

    def _notice_silence(self) -> None:
        for member in self.members.all():
            silence = time.monotonic() - member.heard
            if silence > self._silence:
                self._lose(member, f"its agent said nothing for {silence:.0f} s")

    def _forgive_own_pause(self) -> None:
        """Who was stopped itself must not blame others for a silence that it could not have heard."""
        now = time.monotonic()
        pause = now - self._looked
        self._looked = now
        if pause > self._silence / 3:
            for member in self.members.all():
                member.heard += pause

    def _let_look(self, nodes: Sequence[str]) -> None:
        """Have nodes look for what all others left in the run directory."""
        self.entrance.ask(nodes)
        everybody = [member.node for member in self.members.all()]
        self.tell(nodes, "look", others=everybody, examination=self._token[:8])

    def _judge(self) -> None:
        """When all have looked: who is bad is sent away."""
        if self.entrance.unseen([member.node for member in self.members.all()]):
            return
        verdict = self.entrance.judge()
        for warning in verdict.warnings:
            self._say(f"warning: {warning}")
        for node, reason in verdict.bad.items():
            self._leave_out(node, reason)
        self._listener.on_join()

    def _leave_out(self, node: str, reason: str) -> None:
        self.entrance.exclude(node, reason)
        self._event("bad_node", node=node, reason=reason)
        self._say(f"node {node} is left out: {reason}")
        member = self.members.find(node)
        if member is not None and not self._listener.is_computing(node):
            member.wire.send("bye")
            self._forget(member.wire)
            self.members.remove(member)

    def _say_goodbye(self) -> None:
        """Tell the agents that all is over, and give the words time to arrive."""
        for member in self.members.all():
            member.wire.send("bye")
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while any(not member.wire.is_closed for member in self.members.all()) and time.monotonic() < deadline:
            for member in self.members.all():
                member.wire.flush()
                member.wire.receive()
            time.sleep(_TICK_SECONDS)
