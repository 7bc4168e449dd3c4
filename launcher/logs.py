"""Logs of ranks: every rank has a file; what rank 0 prints is on the terminal as well."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Tee:
    """A text stream that goes to a terminal and, without its progress redraws, to a log.

    The log gets whole lines, as the terminal shows them at last: what a carriage return overwrote and control
    sequences are left out.
    """

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal = terminal
        self._log = log
        self._line = ""

    def write(self, text: str) -> int:
        """Write to both; the log waits for the end of the line."""
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            shown = line.removesuffix("\r").rpartition("\r")[2]
            self._log.write(_CONTROL_SEQUENCE.sub("", shown) + "\n")
        self._line = self._line.rpartition("\r")[2]
        if whole:
            self._log.flush()
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> object:
        """Everything else (isatty, encoding, fileno, flush) is the terminal's."""
        return getattr(self._terminal, name)


def open_log(logs: Path, rank: int, attempt: int) -> TextIO:
    """Send this process's output to `logs/rank_<rank>.log`, after what earlier starts left there.

    Rank 0 keeps the terminal; its file gets a copy of what Python prints. The other ranks' file descriptors 1
    and 2 become the file, so that libraries' output goes there too.

    Returns: the log, for what only the file shall hold.
    """
    log = (logs / f"rank_{rank}.log").open("a", encoding="utf-8", buffering=1)
    log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}, attempt {attempt}, pid {os.getpid()}\n")
    if rank == 0:
        sys.stdout = Tee(sys.stdout, log)
        sys.stderr = Tee(sys.stderr, log)
        return log
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    return log


def follow(log: Path, is_over: Callable[[], bool], seconds: float = 0.5) -> Iterator[str]:
    """The text of a log as it grows, from its beginning; the file need not exist yet.

    Args:
        log: the file.
        is_over: whether nothing more will come; asked before each look, so that the last words are not lost.
        seconds: between looks.
    """
    place = 0
    while True:
        over = is_over()
        if log.exists():
            with log.open(encoding="utf-8", errors="replace", newline="") as stream:
                stream.seek(place)
                text = stream.read()
                place = stream.tell()
            if text:
                yield text
        if over:
            return
        time.sleep(seconds)
