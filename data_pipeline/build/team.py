"""Who does the work of a build: this process, some processes of this machine, or all ranks of an MPI launch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from data_pipeline.build.ranks import MpiRanks
from data_pipeline.errors import DataError
from data_pipeline.processes import Note, run_on_processes

Shared = TypeVar("Shared")
Work = Callable[[int, Note], None]
"""Does one numbered piece of work; says now and then how far it is."""


class Team(Protocol):
    """Workers that take numbered work as they get free. With ranks, all of them make the same calls."""

    @property
    def is_first(self) -> bool:
        """Whether this process prepares the work and speaks for all; the only one that does, with ranks."""
        ...

    def share(self, make: Callable[[], Shared]) -> Shared:
        """What the first makes, for all; its error is everybody's."""
        ...

    def run(self, work: Work, numbers: Sequence[int], claims: Path, on_note: Note) -> None:
        """Do all the work, each number once; returns when everybody is done, an error of one is everybody's.

        Args:
            work: picklable.
            numbers: the same on all ranks, in the order in which they should be begun.
            claims: a folder all can write to, of this launch and stage alone; only ranks use it.
            on_note: called on the first with the notes of all.
        """
        ...

    def __enter__(self) -> Team: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalTeam:
    """This process alone, or processes started by ``spawn``."""

    is_first = True

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise DataError(f"workers={workers} must be at least 1")
        self._workers = workers

    def share(self, make: Callable[[], Shared]) -> Shared:
        """What ``make`` makes."""
        return make()

    def run(self, work: Work, numbers: Sequence[int], claims: Path, on_note: Note) -> None:
        """Do all the work; see :class:`Team`."""
        if self._workers > 1 and len(numbers) > 1:
            run_on_processes(work, numbers, self._workers, on_note)
            return
        for number in numbers:
            work(number, on_note)

    def __enter__(self) -> LocalTeam:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def find_team(workers: int) -> Team:
    """All ranks if an MPI launcher started this process with others, else ``workers`` processes.

    Raises: DataError if mpi4py is missing where it is needed.
    """
    if mpi_size() == 1:
        return LocalTeam(workers)
    return MpiRanks.of_this_launch()


def mpi_size() -> int:
    """Ranks of the MPI launch that this process belongs to, by what mpirun or srun leave in the environment."""
    names = ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"]
    if "PMIX_RANK" in os.environ:
        names += ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1)
