"""Where a run's coordinator can be found: a small file in the run directory, which all nodes see."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

HINT_VARIABLE = "PTM_COORDINATOR"
"""Environment variable with `host:port` of a coordinator, for nodes that cannot read it from the run directory."""

_FILE = "coordinator.json"
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 5.0
_FOLDER_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """Of a coordinator.

    Attributes:
        host: name or number that other nodes can reach.
        port: TCP port on which it listens.
        token: what agents must know to be let in; the file can be read by the user alone.
    """

    host: str
    port: int
    token: str

    def write(self, logs: Path) -> None:
        """Tell who looks into the folder, all at once."""
        path = logs / _FILE
        unfinished = path.with_name(f".{_FILE}.{os.getpid()}")
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
        unfinished.replace(path)

    @staticmethod
    def read(logs: Path) -> Address | None:
        """What was written last, or None."""
        try:
            return Address(**json.loads((logs / _FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @staticmethod
    def remove(logs: Path) -> None:
        """Nobody listens any more."""
        (logs / _FILE).unlink(missing_ok=True)


def complain(logs: Path, node: str) -> None:
    """Tell the coordinator, if it can be reached at all, that this node does not see its run directory."""
    host, _, port = os.environ.get(HINT_VARIABLE, "").rpartition(":")
    if not port.isdigit():
        return
    message = {"kind": "apart", "node": node, "reason": f"does not see {logs}: mount the same file system there"}
    with suppress(OSError), socket.create_connection((host, int(port)), _CONNECT_SECONDS) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.recv(1)  # until it has been heard


def connect(logs: Path, seconds: float) -> tuple[socket.socket, Address] | None:
    """A connection to the coordinator of a run, or None if none answered in time.

    The address is read anew for each attempt: what an earlier coordinator left behind is of no use. Where the folder
    itself is missing nobody will ever write one, and it is not waited for.
    """
    deadline, no_folder = time.monotonic() + seconds, time.monotonic() + _FOLDER_SECONDS
    while True:
        address = Address.read(logs)
        if address is not None:
            try:
                return socket.create_connection((address.host, address.port), _CONNECT_SECONDS), address
            except OSError:
                pass  # not there yet, or not any more
        if time.monotonic() > (deadline if logs.is_dir() else min(deadline, no_folder)):
            return None
        time.sleep(_POLL_SECONDS)
