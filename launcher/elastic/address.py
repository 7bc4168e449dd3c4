"""Where a run's coordinator can be found: a small file in the run directory, which all nodes see."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE = "coordinator.json"
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 5.0


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


def node_name() -> str:
    """Of this machine; nodes of a rehearsal cluster share a host name, and Slurm's name tells them apart."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def connect(logs: Path, seconds: float) -> tuple[socket.socket, Address] | None:
    """A connection to the coordinator of a run, or None if none answered in time.

    The address is read anew for each attempt: what an earlier coordinator left behind is of no use.
    """
    deadline = time.monotonic() + seconds
    while True:
        address = Address.read(logs)
        if address is not None:
            try:
                return socket.create_connection((address.host, address.port), _CONNECT_SECONDS), address
            except OSError:
                pass  # not there yet, or not any more
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
