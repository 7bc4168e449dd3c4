"""Messages between coordinator and agents: one JSON object per line over TCP. Nothing here ever waits."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

_READ_BYTES = 1 << 16
_LONGEST_MESSAGE = 64 << 20


class Wire:
    """One connection, seen from one end.

    Args:
        connection: to the other end; belongs to this object from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with suppress(OSError):  # not for Unix sockets
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._unsent = bytearray()
        self._unread = bytearray()
        self.is_closed = False

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def send(self, kind: str, **values: Any) -> None:
        """Send a message; what the other end cannot take yet goes with a later :meth:`flush`."""
        self._unsent += json.dumps({"kind": kind, **values}).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it."""
        while self._unsent and not self.is_closed:
            try:
                sent = self._connection.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            del self._unsent[:sent]

    def receive(self) -> list[Message]:
        """All whole messages that have come; sets :attr:`is_closed` when no more can come."""
        while not self.is_closed:
            try:
                data = self._connection.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._unread += data
            if not data or len(self._unread) > _LONGEST_MESSAGE:
                self.close()
        *lines, self._unread = self._unread.split(b"\n")
        return [message for line in lines if (message := _parsed(bytes(line))) is not None]

    def close(self) -> None:
        """End the connection; again does nothing."""
        self.is_closed = True
        self._connection.close()


def _parsed(line: bytes) -> Message | None:
    """A message; None for lines of somebody who speaks another language."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("kind"), str) else None
