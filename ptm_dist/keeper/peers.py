"""Snapshots on their way to another node, over a socket between two processes that hold no lock of any rank."""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from ptm_dist.keeper.snapshots import SnapshotHeader, begin, damaged_boxes, parse_header, seal

_SECONDS = 60.0
"""Without a byte in that time, a node is taken for lost."""
_LENGTHS = struct.Struct("<QQ")
_TAKEN = b"\x01"


@dataclass(frozen=True)
class Peer:
    """Where a process listens, and the secret that it wants to hear first."""

    host: str
    port: int
    secret: str


def send(peer: Peer, header: SnapshotHeader, values: int) -> None:
    """Bring a snapshot to a peer; on return it has it.

    Args:
        peer: that listens.
        header: with check sums.
        values: descriptor of the file of values.

    Raises: OSError if it does not take it.
    """
    text = header.text().encode()
    size = os.fstat(values).st_size
    with socket.create_connection((peer.host, peer.port), timeout=_SECONDS) as connection:
        connection.sendall(peer.secret.encode() + _LENGTHS.pack(len(text), size) + text)
        sent = 0
        while sent < size:
            sent += os.sendfile(connection.fileno(), values, sent, size - sent)
        if connection.recv(1) != _TAKEN:
            raise ConnectionError(f"{peer.host} could not take a snapshot")


class Receiver:
    """Takes snapshots of a peer into a folder, in a thread, for as long as the process lives.

    Args:
        folder: of this node.
        secret: that a peer says first.
    """

    def __init__(self, folder: Path, secret: str) -> None:
        self._folder = folder
        self._secret = secret.encode()
        self._socket = socket.create_server(("", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(_SECONDS)
                try:
                    self._take(connection)
                    connection.sendall(_TAKEN)
                except (OSError, ValueError):
                    continue  # the sender sees that it was not taken, and says so

    def _take(self, connection: socket.socket) -> None:
        if not hmac.compare_digest(_read(connection, len(self._secret)), self._secret):
            raise ValueError("no peer")
        length, size = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
        header = parse_header(_read(connection, length).decode())
        if header is None or Path(header.file).name != header.file:
            raise ValueError("no header")
        begin(self._folder, header.file)
        descriptor = os.open(self._folder / header.file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            _receive(connection, descriptor, size)
        finally:
            os.close(descriptor)
        if damaged_boxes(self._folder, header):
            raise ValueError("damaged on its way")
        seal(self._folder, header)


def _read(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise ConnectionError("the peer is gone")
        content += part
    return bytes(content)


def _receive(connection: socket.socket, descriptor: int, size: int) -> None:
    block, place = memoryview(bytearray(min(size, 1 << 20) or 1)), 0
    while place < size:
        count = connection.recv_into(block[: min(len(block), size - place)])
        if not count:
            raise ConnectionError("the peer is gone")
        os.pwrite(descriptor, block[:count], place)
        place += count
