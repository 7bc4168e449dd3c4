"""Fetching shards before they are needed: the order of a run is arithmetic, so its future is known exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.shards import ShardEntry
from data_pipeline.store.fetch import FetchStoppedError
from data_pipeline.store.horizon import Horizon
from data_pipeline.store.needs import Needs
from data_pipeline.store.remote import RemoteFiles

_LOOK_USES = 4096
_MAX_USES = 100_000
"""Pairs of step and shard to look ahead; beyond, the next use of a shard counts as far."""

_POLL_S = 0.5
"""How soon to look again whether other processes have made room or fetched a shard."""


class Prefetcher:
    """A thread that fetches what the next steps read, in the order of need, and says so to the other processes.

    It never evicts a shard that any process of the machine needs as soon. A shard that cannot be fetched is
    left alone; whoever reads it tries again and gets the error.

    Args:
        files: the data set.
        future: pairs of step and the numbers of the shards that it reads, steps ascending; read as far as needed.
        ahead_bytes: most bytes of shards to hold ready; never more than the cache may hold.
        ahead_steps: most steps to be ahead; None for as many as there is room for.

    Attributes:
        failures: what happened to shards that could not be fetched, by number.
    """

    def __init__(
        self,
        files: RemoteFiles,
        future: Iterable[tuple[int, Sequence[int]]],
        *,
        ahead_bytes: int | None = None,
        ahead_steps: int | None = None,
    ) -> None:
        limit = files.cache.limit_bytes
        self._files = files
        self._shards = files.manifest.shards
        self._ahead_bytes = limit if ahead_bytes is None else min(ahead_bytes, limit)
        self._ahead_steps = ahead_steps
        self._horizon = Horizon(future)
        self.failures: dict[int, DataError] = {}
        self._crash: BaseException | None = None
        self._step = 0
        self._changed = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shard prefetch", daemon=True)
        self._thread.start()

    def advance(self, step: int) -> None:
        """Say that the steps before `step` are done; returns at once.

        Raises: whatever ended the thread that fetches, such as an error in `future`.
        """
        if self._crash is not None:
            raise self._crash
        self._step = step
        self._changed.set()

    def close(self) -> None:
        """Stop fetching; what has arrived of a shard is kept."""
        self._ending.set()
        self._changed.set()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            with self._files.cache.needs() as needs:
                while not self._ending.is_set():
                    self._changed.clear()
                    is_new = self._look_and_tell(needs)
                    outcome = self._fetch_one()
                    if outcome == "no room":
                        self._ending.wait(_POLL_S)  # whatever this process does, looking costs the others time
                    elif outcome is None and not is_new:
                        self._changed.wait(_POLL_S)
        except FetchStoppedError:
            return
        except BaseException as error:  # raised in the thread that goes on
            self._crash = error

    def _look_and_tell(self, needs: Needs) -> bool:
        """Bring the known future up to date; False if nothing is new."""
        horizon = self._horizon
        before = (horizon.step, horizon.size)
        horizon.advance(self._step)
        if not horizon.is_complete and horizon.size < _MAX_USES:
            horizon.look_ahead(_LOOK_USES)
        is_new = (horizon.step, horizon.size) != before
        if is_new:
            self._files.announce(needs, horizon.step, horizon.next_uses())
        return is_new

    def _fetch_one(self) -> Literal["done", "no room"] | None:
        """Fetch the shard that is needed first of those that are not there; None if there is nothing to do."""
        for shard, entry, distance in self._wanted():
            try:
                outcome = self._files.fetch_ahead(entry, distance, self._ending.is_set)
            except DataError as error:
                self.failures[shard] = error
                return "done"
            if outcome == "fetched":
                return "done"
            if outcome == "no room":
                return "no room"
        return None

    def _wanted(self) -> Iterator[tuple[int, ShardEntry, int]]:
        """Shards to hold ready: number, entry, and steps until it is read; soonest first."""
        room = self._ahead_bytes
        for shard, step in self._horizon.next_uses():
            entry = self._shards[shard]
            distance = step - self._horizon.step
            room -= entry.bytes
            if room < 0 or (self._ahead_steps is not None and distance > self._ahead_steps):
                return
            if shard not in self.failures and not self._files.is_there(entry):
                yield shard, entry, distance
