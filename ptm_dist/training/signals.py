"""Stop signals: remembered when they come, acted upon between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Which stop signal this process was given, if any."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember; nothing else is safe within a signal handler."""
        self.number = number


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """While the body runs, SIGINT and SIGTERM set the flag and do nothing else. Only for the main thread."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
