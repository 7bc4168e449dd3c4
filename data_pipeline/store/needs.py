"""What the processes of a machine will read next, so that each can evict what all of them need latest."""

from __future__ import annotations

import json
import math
import os
import socket
import uuid
from pathlib import Path

from data_pipeline.store.locks import FileLock


class Needs:
    """The shards that this process reads next, in a file that it keeps locked as long as it lives.

    Files whose lock is free belong to dead processes. Everything here happens under the lock of the cache
    folder, which makes rewriting in place safe.

    Args:
        directory: of these files.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lock = FileLock.acquire(self._path)
        assert lock is not None
        self._lock = lock

    def write(self, step: int, uses: dict[str, int]) -> None:
        """Replace what was written before.

        Args:
            step: that the process is at.
            uses: the next step that reads each shard, by its name in the cache; left out: not known.
        """
        text = json.dumps({name: max(use - step, 0) for name, use in uses.items()}).encode()
        os.ftruncate(self._lock.descriptor, 0)
        os.pwrite(self._lock.descriptor, text, 0)

    def close(self) -> None:
        """Need nothing any more."""
        self._path.unlink(missing_ok=True)
        self._lock.release()


def next_uses(directory: Path) -> dict[str, float]:
    """Steps until each shard is read by some living process, by its name in the cache; removes files of dead ones.

    Steps count from where each process is, so that runs at different steps can share a cache.
    """
    nearest: dict[str, float] = {}
    for path in directory.iterdir():
        dead = FileLock.acquire(path, wait=False)
        if dead:
            path.unlink(missing_ok=True)
            dead.release()
            continue
        for name, distance in json.loads(path.read_bytes() or b"{}").items():
            nearest[name] = min(nearest.get(name, math.inf), distance)
    return nearest
