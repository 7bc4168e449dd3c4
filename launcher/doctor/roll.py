"""A roll call: processes that report to the first one, which goes on without those that do not answer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

_POLL_SECONDS = 0.01


class SilenceError(ConnectionError):
    """The first process does not answer, or has gone on without this one."""


class Roll:
    """Who is here, agreed through a store rather than by collectives, which wait for everybody.

    Args:
        store: that all processes reach.
        rank: of this process.
        size: processes that should come.
        patience: seconds that the first one waits for an answer.

    Attributes:
        rank: of this process.
        present: ranks that have answered every call so far, the same on all of them.
        lost: ranks that have not, each with the call that it missed.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: float) -> None:
        self._store = store
        self.rank = rank
        self._patience = patience
        self.present: Sequence[int] = range(size)
        self.lost: dict[int, str] = {}

    def gather(self, name: str, value: object, patience: float | None = None) -> dict[int, Any]:
        """Report a value under a name that is used once.

        Args:
            name: of the call.
            value: as JSON.
            patience: seconds; None: those of the roll.

        Returns: on the first process, the values of those that answered, by rank; on the others nothing.
        Raises: SilenceError if the first process does not answer, or did not hear this one in time.
        """
        patience = patience or self._patience
        self._store.set(f"{name}/{self.rank}", json.dumps(value))
        if self.rank == 0:
            self._wait(name, patience)
            present = [rank for rank in self.present if self._store.check([f"{name}/{rank}"])]
            self._store.set(name, json.dumps(present))
        else:
            # The first process may come to this call a while later than this one.
            present = json.loads(self._told(name, 2 * patience + self._patience))
        self.lost |= {rank: name for rank in self.present if rank not in present}
        self.present = present
        if self.rank not in present:
            raise SilenceError(f"rank {self.rank} came too late")
        if self.rank != 0:
            return {}
        return {rank: json.loads(self._store.get(f"{name}/{rank}")) for rank in present}

    def tell(self, name: str, value: object = None) -> Any:
        """What the first process says under a name that is used once; the values of the others are not used.

        Raises: SilenceError if the first process does not answer.
        """
        if self.rank == 0:
            self._store.set(name, json.dumps(value))
            return value
        return json.loads(self._told(name, 2 * self._patience))

    def leave(self, patience: float) -> None:
        """The end: the first process, in which the store may live, lets the others go first."""
        self._store.set(f"leave/{self.rank}", "")
        if self.rank == 0:
            self._wait("leave", patience)

    def _wait(self, name: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        keys = [f"{name}/{rank}" for rank in self.present]
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _told(self, name: str, patience: float) -> bytes:
        try:
            self._store.wait([name], timedelta(seconds=patience))
            return bytes(self._store.get(name))
        except (RuntimeError, ConnectionError) as error:
            raise SilenceError(f"rank 0 has not answered for {patience:.0f} s") from error
