"""Why a run failed last: what its coordinator noted, or what its ranks left where there was none."""

from __future__ import annotations

from pathlib import Path

from launcher.failures import Exit, Failure, Kind, first_cause, read_failure
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.run_directory import RunDirectory


def first_error(directory: RunDirectory) -> Failure | None:
    """The first cause of the newest failure; None if nothing says that the run ever failed.

    A coordinator sees all ranks and notes an event. Of ranks that torchrun, srun or mpirun started, the earliest
    that blames no other one is taken.
    """
    noted = [row for row in read_rows(directory.events) if row["event"] == "failure" and "rank" in row]
    if noted:
        return _noted(noted[-1], directory.logs)
    ranks = sorted(int(path.stem.removeprefix("failure_rank")) for path in directory.logs.glob("failure_rank*.json"))
    return first_cause(directory.logs, [Exit(rank, 1, 0.0) for rank in ranks]) if ranks else None


def _noted(row: dict[str, object], logs: Path) -> Failure:
    rank = int(str(row["rank"]))
    written = read_failure(logs, rank)
    traceback = written.traceback if written is not None and written.message == row["cause"] else ""
    return Failure(
        rank,
        0.0,
        Kind(str(row["failure"])),
        str(row["cause"]),
        traceback,
        node=str(row["node"]),
        place=str(row["place"]),
    )
