"""Ask another program something that may never be answered, while doing other things."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_REAP_SECONDS = 0.5


@dataclass(frozen=True)
class Answer:
    """What a program said.

    Attributes:
        code: its exit code; 127 if there is no such program, None if it did not answer in time.
        out: its standard output.
        error: its standard error.
    """

    code: int | None
    out: str
    error: str


class Probe:
    """A program that has been started.

    Args:
        command: the program and its arguments.
        patience: seconds from now after which it is given up. It is killed then, but not waited for: one that hangs
            inside the kernel cannot die.
    """

    def __init__(self, command: Sequence[str], patience: float) -> None:
        self._deadline = time.monotonic() + patience
        self._process: subprocess.Popen[str] | None = None
        with suppress(FileNotFoundError, PermissionError):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )

    def answer(self) -> Answer:
        """Wait for the answer; call it once."""
        if self._process is None:
            return Answer(127, "", "no such program")
        try:
            out, error = self._process.communicate(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)
            return Answer(None, "", "")
        return Answer(self._process.returncode, out, error)
