"""The process itself: takes jobs from its rank, one after the other, until the rank is gone.

Started as `python -m ptm_dist.keeper.process SOCKET PARENT BUFFER...`: descriptors, and the process id of the rank.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ptm_dist.keeper.archive import DataFile
from ptm_dist.keeper.messages import Answer, Failed, Job, Keep, Kept, Listen, Listening, Save, Saved
from ptm_dist.keeper.peers import Receiver, send
from ptm_dist.keeper.snapshots import hashed, seal

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
"""Of what writes: steps come first where processors are few."""


class Keeper:
    """Does what a rank asks for.

    Args:
        buffers: descriptors of shared memory.
    """

    def __init__(self, buffers: Sequence[int]) -> None:
        self._buffers = buffers
        self._views: dict[int, memoryview] = {}

    def answer(self, job: Job) -> Answer | Failed:
        """Do a job; whatever goes wrong is an answer too."""
        try:
            return self._done(job)
        except OSError as error:
            return Failed(error.errno or 0, error.strerror or str(error))
        except Exception as error:
            return Failed(0, f"{type(error).__name__}: {error}")

    def _done(self, job: Job) -> Answer:
        match job:
            case Save():
                os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
                return Saved(save(job, self._view(job.buffer)))
            case Listen():
                return Listening(Receiver(Path(job.folder), job.secret).port)
            case Keep():
                return Kept(keep(job, self._view(job.buffer), self._buffers[job.buffer]))

    def _view(self, buffer: int) -> memoryview:
        """All of a buffer, mapped once."""
        if buffer not in self._views:
            self._views[buffer] = memoryview(mmap.mmap(self._buffers[buffer], 0))
        return self._views[buffer]


def save(job: Save, values: memoryview) -> dict[str, tuple[int, str]]:
    """Write the files of a job, of which the buffer holds `values`; bytes and xxh3-128 by name."""
    files = {}
    if job.parts:
        with DataFile(Path(job.folder, job.file)) as file:
            for part in job.parts:
                file.add(part.pickled, values[part.begin : part.begin + part.size])
        files[job.file] = (file.size, file.xxh3)
    for name, content in job.others.items():
        with DataFile(Path(job.folder, name)) as file:
            file.write(content)
        files[name] = (file.size, file.xxh3)
    return files


def keep(job: Keep, values: memoryview, descriptor: int) -> str | None:
    """Make a snapshot here and at the peer; why there is none at the peer, in words."""
    header = hashed(job.header, values)
    seal(Path(job.folder), header)
    if job.peer is None:
        return None
    try:
        send(job.peer, header, descriptor)
    except OSError as error:
        return str(error)
    return None


def main(arguments: Sequence[str]) -> None:
    """Serve until the rank closes its end or dies."""
    socket, parent, *buffers = (int(argument) for argument in arguments)
    # Signals that end a run reach its whole session; the rank then waits for what this process is at.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    connection, keeper = Connection(socket), Keeper(buffers)
    while True:
        try:
            connection.send(keeper.answer(connection.recv()))
        except (EOFError, OSError):
            return


def _die_with(parent: int) -> None:
    """Be killed when the rank dies, however it does; its socket may live on in data loaders that it forked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
