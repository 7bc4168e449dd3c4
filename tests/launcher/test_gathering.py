"""Who is let in by a coordinator, and who is not: real connections to a real port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.elastic.address import Address
from launcher.elastic.gathering import Gathering
from launcher.elastic.wire import Wire
from tests.launcher.processes import wait_until


class Heard:
    """What a coordinator was told."""

    def __init__(self) -> None:
        self.joins = 0
        self.losses: list[str] = []
        self.messages: list[tuple[str, str]] = []
        self.events: list[tuple[str, Any]] = []

    def on_join(self) -> None:
        self.joins += 1

    def on_loss(self, node: str, why: str) -> None:
        self.losses.append(node)

    def on_message(self, node: str, message: dict[str, Any]) -> None:
        self.messages.append((node, message["kind"]))

    def is_computing(self, node: str) -> bool:
        return False

    def event(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values["node"]))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def gathering(tmp_path, heard) -> Iterator[Gathering]:
    gathering = Gathering(tmp_path, "127.0.0.1", 0, 15.0, 5.0, heard, heard.event, lambda text: None)
    with gathering.open():
        yield gathering


def address(logs: Path) -> Address:
    found = Address.read(logs)
    assert found is not None
    return found


def connection(logs: Path) -> socket.socket:
    where = address(logs)
    return socket.create_connection((where.host, where.port))


def hello(logs: Path, node: str, **values: Any) -> Wire:
    wire = Wire(connection(logs))
    wire.send("hello", **{"token": address(logs).token, "node": node, "processes": 2, **values})
    return wire


def listens_until(gathering: Gathering, condition: Any) -> None:
    wait_until(lambda: gathering.listen() or condition(), 10)


def is_closed(wire: Wire) -> bool:
    wire.receive()
    return wire.is_closed


def test_only_the_user_can_read_what_lets_an_agent_in(gathering, tmp_path):
    assert (tmp_path / "coordinator.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("token", ["", "0" * 32, "\u00fc", "\ud800", None, 7, ["x"]])
def test_a_stranger_without_the_token_is_not_let_in(gathering, heard, tmp_path, token):
    stranger = hello(tmp_path, "n1", token=token)
    listens_until(gathering, lambda: is_closed(stranger))
    assert len(gathering.members) == 0
    assert (heard.joins, heard.events) == (0, [])


def test_a_stranger_cannot_speak_for_a_node_that_is_here(gathering, heard, tmp_path):
    agent = hello(tmp_path, "n1")
    listens_until(gathering, lambda: heard.joins == 1)
    stranger = Wire(connection(tmp_path))
    stranger.send("end", round=0, rank=0)
    listens_until(gathering, lambda: is_closed(stranger))
    assert heard.messages == []
    assert heard.losses == []
    agent.send("beats", round=0, beats={})
    listens_until(gathering, lambda: heard.messages == [("n1", "beats")])


def test_strangers_who_speak_another_language_or_nothing_disturb_nobody(gathering, heard, tmp_path):
    silent, browser = connection(tmp_path), connection(tmp_path)
    browser.sendall(b"GET / HTTP/1.1\r\n\r\n\xff\xff\n")
    agent = hello(tmp_path, "n1")
    listens_until(gathering, lambda: heard.joins == 1)
    browser.close()
    silent.close()
    for _ in range(3):
        gathering.listen()
    assert heard.losses == []
    agent.send("beats")
    listens_until(gathering, lambda: heard.messages == [("n1", "beats")])


def test_an_agent_that_is_gone_takes_its_node_with_it(gathering, heard, tmp_path):
    agent = hello(tmp_path, "n1")
    listens_until(gathering, lambda: heard.joins == 1)
    agent.close()
    listens_until(gathering, lambda: heard.losses == ["n1"])
    assert heard.events == [("node_joined", "n1"), ("node_lost", "n1")]


def test_an_agent_that_comes_anew_replaces_the_one_before(gathering, heard, tmp_path):
    first = hello(tmp_path, "n1")
    listens_until(gathering, lambda: heard.joins == 1)
    second = hello(tmp_path, "n1", processes=4)
    listens_until(gathering, lambda: heard.joins == 2)
    listens_until(gathering, lambda: is_closed(first))
    assert heard.losses == ["n1"]
    assert gathering.members.processes == 4
    second.send("beats")
    listens_until(gathering, lambda: heard.messages == [("n1", "beats")])


def test_all_are_told_goodbye_and_the_address_is_gone(tmp_path, heard):
    gathering = Gathering(tmp_path, "127.0.0.1", 0, 15.0, 5.0, heard, heard.event, lambda text: None)
    with gathering.open():
        sock = connection(tmp_path)
        wire = Wire(sock)
        wire.send("hello", token=address(tmp_path).token, node="n1", processes=1)
        listens_until(gathering, lambda: heard.joins == 1)
        sock.shutdown(socket.SHUT_WR)  # as an agent that ends at once, so that nobody waits for it
    messages = []
    wait_until(lambda: messages.extend(wire.receive()) or wire.is_closed, 10)
    assert [message["kind"] for message in messages if message["kind"] != "ping"] == ["bye"]
    assert Address.read(tmp_path) is None
