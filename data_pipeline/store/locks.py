"""Locks between processes of one machine, which the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()
"""Descriptors of this process's locks."""


class FileLock:
    """An exclusive lock on a file (flock), held by one thread of one process until it is released.

    A forked child does not hold the locks of its parent, so that they end with the parent.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._process = os.getpid()

    @classmethod
    def acquire(cls, path: Path, *, wait: bool = True) -> FileLock | None:
        """Lock a file, which is made if need be.

        Args:
            path: the file.
            wait: until the lock is free; otherwise give up at once if it is not.

        Returns: the lock; None if it is not free and `wait` is False.
        Raises: OSError if the file cannot be opened.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _held.add(descriptor)
        lock = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.release()
            return None
        except BaseException:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        """Let go; in a forked child nothing is left to do."""
        if self._process == os.getpid() and self.descriptor in _held:
            _held.discard(self.descriptor)
            # Closing alone would leave the lock to a child that was forked just now.
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            os.close(self.descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file inside the block, after waiting for it."""
    lock = FileLock.acquire(path)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


def _drop_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)
