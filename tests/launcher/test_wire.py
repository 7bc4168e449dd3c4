"""Messages over real sockets: in pieces, from strangers, and to ends that do not listen or are gone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from launcher.elastic import wire as wires
from launcher.elastic.wire import Wire


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the plain socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    wire = Wire(ours)
    yield wire, theirs
    wire.close()
    theirs.close()


def read(wire: Wire, count: int) -> list[dict[str, object]]:
    """Messages as they come, up to some number, or until the other end is gone."""
    found: list[dict[str, object]] = []
    while len(found) < count and not wire.is_closed:
        found += wire.receive()
    return found


def test_a_message_that_comes_in_pieces_is_one_message(ends):
    wire, other = ends
    line = json.dumps({"kind": "hello", "node": "n1 \u00fc"}).encode() + b"\n"
    for byte in range(len(line) - 1):
        other.sendall(line[byte : byte + 1])
        assert wire.receive() == []
    other.sendall(line[-1:] + b'{"kind": "be')
    assert read(wire, 1) == [{"kind": "hello", "node": "n1 \u00fc"}]
    other.sendall(b'ats"}\n{"kind": "end"}\n')
    assert read(wire, 2) == [{"kind": "beats"}, {"kind": "end"}]


def test_lines_of_another_language_are_passed_over(ends):
    wire, other = ends
    garbage = [
        b"GET / HTTP/1.1",
        b"",
        b"\x16\x03\x01\xff\xfe",
        b"[1]",
        b'{"node": "n1"}',
        b'{"kind": 3}',
        b"[" * 200_000,
    ]
    other.sendall(b"\n".join([*garbage, b'{"kind": "ping"}', b""]))
    assert read(wire, 1) == [{"kind": "ping"}]
    assert not wire.is_closed


def test_what_was_said_before_the_end_is_heard(ends):
    wire, other = ends
    other.sendall(b'{"kind": "end"}\n{"kind": "cut o')
    other.close()
    assert read(wire, 2) == [{"kind": "end"}]
    assert wire.is_closed
    assert wire.receive() == []


def test_what_the_other_end_cannot_take_yet_waits(ends):
    wire, other = ends
    text = "x" * (32 << 20)  # more than sockets hold
    wire.send("stacks", text=text)  # returns at once, though nobody reads
    wire.send("bye")
    received = bytearray()
    while not received.endswith(b'"bye"}\n'):
        wire.flush()
        received += other.recv(1 << 20)
    first, second, _ = bytes(received).split(b"\n")
    assert json.loads(first) == {"kind": "stacks", "text": text}
    assert json.loads(second) == {"kind": "bye"}


def test_to_speak_to_somebody_who_is_gone_only_closes_the_wire(ends):
    wire, other = ends
    other.close()
    for _ in range(1000):
        wire.send("ping", text="x" * 1000)
        if wire.is_closed:
            break
    assert wire.is_closed
    wire.send("ping")
    wire.close()


def test_a_line_without_an_end_is_not_listened_to_for_ever(ends, monkeypatch):
    monkeypatch.setattr(wires, "_LONGEST_MESSAGE", 1 << 20)
    wire, other = ends
    other.settimeout(0.01)
    with pytest.raises(ConnectionError):
        while True:
            with suppress(TimeoutError):
                other.sendall(b"x" * (1 << 16))
            wire.receive()
    assert wire.is_closed
