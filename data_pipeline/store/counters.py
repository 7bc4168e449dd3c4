"""What the cache did, counted over all threads and forked processes of a run without any lock."""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

Cause = Literal["server_error", "refused", "missing", "timeout", "truncated", "connection", "damaged"]
"""Why a request failed."""

_COUNTERS = ("fetched_bytes", "fetched_shards", "refetches", "evictions", "wait_s", *get_args(Cause))
_RECORD = np.dtype([("counter", "<i8"), ("amount", "<f8")])


@dataclass(frozen=True)
class CacheStatistics:
    """What was done for one data set by this process, its threads and the processes that were forked from it.

    Attributes:
        fetched_bytes: that arrived, those of failed requests and of damaged parts included.
        fetched_shards: that became whole.
        retries: requests that were made again, by the cause of the failure.
        refetches: downloads of parts of a shard in which a hash did not fit.
        evictions: shards removed to make room.
        wait_s: seconds that readers waited for shards that were not there.
    """

    fetched_bytes: int
    fetched_shards: int
    retries: dict[Cause, int]
    refetches: int
    evictions: int
    wait_s: float


class Counters:
    """Sums that processes forked from this one share.

    Every event is appended to an unlinked file, which the kernel does as a whole, even if a process is
    killed; there is nothing to lock and nothing to clean up.

    Raises:
        OSError: no file can be made in `directory`.
    """

    def __init__(self, directory: Path) -> None:
        # The object owns the file as long as anything may count.
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        fcntl.fcntl(self._file.fileno(), fcntl.F_SETFL, os.O_APPEND)
        self._sums = np.zeros(len(_COUNTERS))
        self._read = 0

    def add(self, counter: str, amount: float = 1) -> None:
        """Count an event: a field of :class:`CacheStatistics`, or the cause of a retry."""
        os.write(self._file.fileno(), np.array([(_COUNTERS.index(counter), amount)], _RECORD).tobytes())

    def statistics(self) -> CacheStatistics:
        """The sums so far."""
        end = os.fstat(self._file.fileno()).st_size
        events = np.frombuffer(os.pread(self._file.fileno(), end - self._read, self._read), _RECORD)
        self._read = end
        np.add.at(self._sums, events["counter"], events["amount"])
        sums = dict(zip(_COUNTERS, self._sums.tolist(), strict=True))
        retries = {cause: int(sums[cause]) for cause in get_args(Cause) if sums[cause]}
        whole = {name: int(sums[name]) for name in ("fetched_bytes", "fetched_shards", "refetches", "evictions")}
        return CacheStatistics(**whole, retries=retries, wait_s=sums["wait_s"])
