"""The processes beside a rank, seen from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe

from ptm_dist.errors import CheckpointError
from ptm_dist.keeper.messages import Answer, Failed, Job


class KeeperProcess:
    """A process beside this rank (:mod:`ptm_dist.keeper.process`).

    Args:
        buffers: descriptors of memory that it shares.
    """

    def __init__(self, buffers: Sequence[int]) -> None:
        self._connection, theirs = Pipe()
        inherited = (theirs.fileno(), *buffers)
        arguments = [theirs.fileno(), os.getpid(), *buffers]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ptm_dist.keeper.process", *map(str, arguments)],
            pass_fds=inherited,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, job: Job) -> None:
        """Ask for something; if it is dead, the answer says so."""
        try:
            self._connection.send(job)
        except OSError:
            return

    def has_answer(self) -> bool:
        """Whether :meth:`answer` would not wait."""
        return self._connection.poll()

    def answer(self) -> Answer:
        """The answer to the oldest job that has none yet.

        Raises:
            OSError: why it could not be done.
            CheckpointError: if the process is gone.
        """
        try:
            answer: Answer | Failed = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise CheckpointError(
                f"the process that writes checkpoints ended (exit code {code}); is the machine out of memory? "
                "Earlier checkpoints are untouched, and the same command goes on from the last one"
            ) from None
        if isinstance(answer, Failed):
            raise OSError(answer.number, answer.reason) if answer.number else CheckpointError(answer.reason)
        return answer

    def close(self) -> None:
        """End it at once, whatever it is at."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
