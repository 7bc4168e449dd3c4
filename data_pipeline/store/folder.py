"""The cache folder: how much of it is taken, and which shard has to go when another one comes.

    DIRECTORY/room.lock                      held while files appear, change their names or go
    DIRECTORY/needs/HOST-PROCESS-NUMBER      what a living process will read, see needs.py
    DIRECTORY/DATA SET/shard-00000.tar       a whole shard
    DIRECTORY/DATA SET/shard-00000.tar.partial, .partial.parts, .lock

A shard that is being fetched takes its full size from the start. Whole shards are evicted by Belady's rule
(1966): the one whose next use lies farthest ahead goes first. A file may be unlinked while it is mapped.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.store.counters import Counters
from data_pipeline.store.locks import FileLock, locked
from data_pipeline.store.needs import Needs, next_uses
from data_pipeline.store.partial import journal_of

NOW = -1.0
"""Distance of a shard that somebody waits for: any other one may be evicted for it."""

_NEEDS = "needs"
_PARTIAL = ".partial"
_GRACE_S = 0.2
"""A path that was handed out stays valid for so long, so that its reader comes to map the file."""


@dataclass(frozen=True)
class _File:
    """A whole or partial shard in the cache."""

    path: str
    size: int
    distance: float
    used: float

    @property
    def is_partial(self) -> bool:
        return self.path.endswith(_PARTIAL)


class CacheFolder:
    """Room for shards on this machine, shared by all processes that name the same directory.

    Args:
        directory: made if need be.
        limit_bytes: size of all shards in it.

    Raises:
        OSError: the place cannot be written.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _NEEDS).mkdir(exist_ok=True)

    def reserve(self, path: Path, size: int, distance: float, counters: Counters) -> Path | None:
        """Make room for a shard, and take it. The caller holds the shard's lock.

        Args:
            path: where the whole shard will lie.
            size: of the shard in bytes, at most the limit.
            distance: steps until it is read, or ``NOW``; nothing that is needed as soon gives way.
            counters: of the process, for evictions.

        Returns: the partial file to fill, of the full size; None if there is no room.
        """
        partial = path.with_name(path.name + _PARTIAL)
        with self._room():
            if partial.exists() and partial.stat().st_size == size:
                return partial
            files = list(self._files())
            excess = sum(file.size for file in files) + size - self.limit_bytes
            victims = self._victims(files, excess, distance)
            if victims is None:
                return None
            for file, lock in victims:
                journal_of(Path(file.path)).unlink(missing_ok=True)
                Path(file.path).unlink(missing_ok=True)
                counters.add("evictions")
                if lock:
                    lock.release()
            journal_of(partial).unlink(missing_ok=True)
            with partial.open("wb") as stream:
                stream.truncate(size)
            return partial

    def publish(self, partial: Path, path: Path) -> None:
        """Let a filled partial file become the shard."""
        with self._room():
            partial.rename(path)
            journal_of(partial).unlink(missing_ok=True)

    def use(self, path: Path, size: int) -> bool:
        """Whether a whole shard is there; if so, it stays for a moment so that it can be mapped."""
        try:
            status = path.stat()
            if status.st_size != size:
                return False
            # The time of change tells readers that it is still the file whose blocks they checked.
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        except FileNotFoundError:
            return False
        return True

    def announce(self, needs: Needs, step: int, uses: dict[str, int]) -> None:
        """Tell all processes what this one reads next, see :meth:`Needs.write`."""
        with self._room():
            needs.write(step, uses)

    @contextmanager
    def needs(self) -> Iterator[Needs]:
        """A place for what this process reads next, as long as the block lasts."""
        with self._room():
            needs = Needs(self.directory / _NEEDS)
        try:
            yield needs
        finally:
            with self._room():
                needs.close()

    def name_of(self, path: Path) -> str:
        """What a shard is called in the needs."""
        return path.relative_to(self.directory).as_posix()

    def _room(self) -> AbstractContextManager[None]:
        return locked(self.directory / "room.lock")

    def _files(self) -> Iterator[_File]:
        uses = next_uses(self.directory / _NEEDS)
        # Strings, not paths: a cache may hold thousands of shards, and everybody waits meanwhile.
        for data_set in os.scandir(self.directory):
            for file in os.scandir(data_set.path) if data_set.is_dir() else ():
                name = file.name.removesuffix(_PARTIAL)
                if name.endswith(".tar"):
                    with suppress(FileNotFoundError):  # a user may clean up
                        status = file.stat()
                        distance = uses.get(f"{data_set.name}/{name}", math.inf)
                        yield _File(file.path, status.st_size, distance, status.st_atime)

    def _victims(self, files: list[_File], excess: int, distance: float) -> list[tuple[_File, FileLock | None]] | None:
        """Files to unlink, farthest next use first, then longest unused; None if they do not make enough room."""
        victims: list[tuple[_File, FileLock | None]] = []
        for file in sorted(files, key=lambda file: (-file.distance, file.used)):
            if excess <= 0 or file.distance <= distance:
                break
            lock = None
            if file.is_partial:
                lock = FileLock.acquire(lock_of(Path(file.path.removesuffix(_PARTIAL))), wait=False)
                if lock is None:
                    continue  # somebody is filling it
            elif 0 <= time.time() - file.used < _GRACE_S:
                continue
            victims.append((file, lock))
            excess -= file.size
        if excess <= 0:
            return victims
        for _, lock in victims:
            if lock:
                lock.release()
        return None


def lock_of(path: Path) -> Path:
    """The file whose lock a process holds that fetches a shard."""
    return path.with_name(f"{path.name}.lock")
