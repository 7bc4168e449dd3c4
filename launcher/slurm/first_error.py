"""Which rank of a job failed first, from what ranks wrote and from what srun said of those that could not."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from launcher.failures import Exit, Failure, Kind, first_cause

_LIFE = re.compile(r"^\S+ \S+ job \d+, life \d+, on ", re.MULTILINE)
_ENDED = re.compile(r"^srun: error: (?P<node>[^\s:]+): tasks? (?P<rank>\d+)[^:]*: (?P<what>[^\n]+)$", re.MULTILINE)
_WORDS = {"Killed": signal.SIGKILL, "Segmentation fault": signal.SIGSEGV, "Aborted": signal.SIGABRT}


def first_error(logs: Path, job_log: Path | None) -> Failure | None:
    """Why the last life of a run failed, or None if nothing says that it did.

    Args:
        logs: folder where ranks wrote their failures.
        job_log: output of the job; None if the run was started otherwise.
    """
    ranks = sorted(int(path.stem.removeprefix("failure_rank")) for path in logs.glob("failure_rank*.json"))
    written = first_cause(logs, [Exit(rank, 1, 0.0) for rank in ranks]) if ranks else None
    if written is not None and written.kind is not Kind.COLLATERAL:
        return written
    silent = _first_silent(job_log, set(ranks)) if job_log is not None and job_log.exists() else None
    return silent or written


def _first_silent(job_log: Path, ranks: set[int]) -> Failure | None:
    """The first rank that srun saw die and that wrote nothing."""
    text = job_log.read_text(encoding="utf-8", errors="replace")
    lives = list(_LIFE.finditer(text))
    for match in _ENDED.finditer(text, lives[-1].start() if lives else 0):
        rank, what = int(match["rank"]), match["what"]
        if rank in ranks:
            continue
        number = next((number for word, number in _WORDS.items() if what.startswith(word)), None)
        if number is not None:
            failure = Exit(rank, -number, job_log.stat().st_mtime).failure()
            message = f"{failure.message} on node {match['node']}"
        else:
            message = f"rank {rank} on node {match['node']}: {what}"
        return Failure(rank, job_log.stat().st_mtime, Kind.ERROR, message)
    return None
