"""MPI ranks that share out work by files that can be made only once; they end together, in success and in failure."""

from __future__ import annotations

import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from data_pipeline.errors import DataError, UserError
from data_pipeline.processes import Note

Shared = TypeVar("Shared")
_NEWS, _STOP, _READY = 1, 2, 3
"""Tags: to the first rank, what happened; from it, stop; from it, a broadcast begins."""
_POLL_SECONDS = 0.01


class _StoppedError(Exception):
    """Another rank failed."""


class MpiRanks:
    """The ranks of a communicator; no rank hands out work, and rank 0 works like the others.

    Attributes:
        is_first: whether this is rank 0.
    """

    def __init__(self, communicator: Any) -> None:
        self._comm = communicator.Dup()
        self._rank, self._size = self._comm.Get_rank(), self._comm.Get_size()
        self.is_first = self._rank == 0
        self._launch = self._comm.bcast(uuid.uuid4().hex[:12], 0)
        self._outbox: list[Any] = []

    @classmethod
    def of_this_launch(cls) -> MpiRanks:
        """All ranks that the launcher started.

        Raises: DataError if mpi4py is missing or its library cannot be loaded.
        """
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise DataError(
                f"started by an MPI launcher, but mpi4py cannot be loaded ({error}); pip install 'ptm-dist[mpi]'"
            ) from error
        return cls(MPI.COMM_WORLD)

    def share(self, make: Callable[[], Shared]) -> Shared:
        """What rank 0 makes, for all; its error is everybody's."""
        made: Any = None
        failure: str | None = None
        if self.is_first:
            try:
                made = make()
            except UserError as error:
                failure = str(error)
        made, failure = self._broadcast((made, failure))
        if failure is not None:
            raise DataError(failure)
        result: Shared = made
        return result

    def run(self, work: Callable[[int, Note], None], numbers: Sequence[int], claims: Path, on_note: Note) -> None:
        """Do all the work; each rank takes its own share first and then what others have not begun."""
        place = self.share(lambda: self._claims_folder(claims))
        failure = (self._lead if self.is_first else self._follow)(work, numbers, place, on_note)
        failure = self._broadcast(failure)
        if failure is not None:
            raise DataError(failure)

    def __enter__(self) -> MpiRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all ranks if this one ends in a way that the others do not know of."""
        if error is not None and not isinstance(error, UserError):
            traceback.print_exception(error)
            self._comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def _claims_folder(self, claims: Path) -> Path:
        place = claims.with_name(f"{claims.name}-{self._launch}")
        place.mkdir(parents=True)
        return place

    def _lead(
        self, work: Callable[[int, Note], None], numbers: Sequence[int], place: Path, on_note: Note
    ) -> str | None:
        failures: list[str] = []
        working = set(range(1, self._size))

        def listen() -> None:
            while self._comm.iprobe(tag=_NEWS):
                rank, note, ended, failure = self._comm.recv(tag=_NEWS)
                if note is not None:
                    on_note(note)
                if ended:
                    working.discard(rank)
                if failure is not None:
                    failures.append(failure)

        def note_here(value: Any) -> None:
            if value is not None:
                on_note(value)
            listen()
            if failures:
                raise _StoppedError

        failure = self._work(work, numbers, place, note_here)
        failures += [] if failure is None else [failure]
        told = False
        while working:
            listen()
            if failures and not told:
                self._outbox += [self._comm.isend(None, rank, tag=_STOP) for rank in range(1, self._size)]
                told = True
            time.sleep(_POLL_SECONDS)
        return failures[0] if failures else None

    def _follow(
        self, work: Callable[[int, Note], None], numbers: Sequence[int], place: Path, on_note: Note
    ) -> str | None:
        def note_to_first(value: Any) -> None:
            self._outbox = [request for request in self._outbox if not request.Test()]
            if value is not None:
                self._outbox.append(self._comm.isend((self._rank, value, False, None), 0, tag=_NEWS))
            if self._comm.iprobe(source=0, tag=_STOP):
                raise _StoppedError

        failure = self._work(work, numbers, place, note_to_first)
        self._comm.send((self._rank, None, True, failure), 0, tag=_NEWS)
        return None

    def _work(self, work: Callable[[int, Note], None], numbers: Sequence[int], place: Path, note: Note) -> str | None:
        """Work until nothing is left or somebody has failed; what went wrong here, if anything."""
        try:
            for number in self._claimed(numbers, place):
                work(number, note)
                note(None)
        except _StoppedError:
            return None
        except UserError as error:
            return f"{error} (rank {self._rank} on {socket.gethostname()})"
        return None

    def _claimed(self, numbers: Sequence[int], place: Path) -> Iterator[int]:
        if not place.is_dir():
            raise DataError(f"{place.parent} cannot be seen on {socket.gethostname()}; all ranks must see the output")
        own = numbers[self._rank :: self._size]
        yield from (number for number in own if _claim(place, number))
        # Each begins elsewhere among what is left, so that few reach for the same.
        shift = self._rank * len(numbers) // self._size
        rest = [*numbers[shift:], *numbers[:shift]]
        while rest:
            taken = set(os.listdir(place))  # noqa: PTH208 - names alone, of up to a million files
            rest = [number for number in rest if str(number) not in taken]
            while rest:
                number = rest.pop(0)
                if _claim(place, number):
                    yield number
                    break

    def _broadcast(self, value: Any) -> Any:
        # A broadcast waits at full speed, and the first may be long in coming.
        if self.is_first:
            self._outbox += [self._comm.isend(None, rank, tag=_READY) for rank in range(1, self._size)]
        else:
            while not self._comm.iprobe(source=0, tag=_READY):
                time.sleep(_POLL_SECONDS)
            self._comm.recv(source=0, tag=_READY)
        return self._comm.bcast(value, 0)


def _claim(place: Path, number: int) -> bool:
    """Whether nobody of this launch had taken this number."""
    try:
        os.close(os.open(place / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror}; free space or choose another place") from error
    return True
