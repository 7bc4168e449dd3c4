"""End a job so that the run can go on later: signal, checkpoint, leave."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.slurm.queue import Job, SlurmError, cancel, find_job, restarts, signal_script
from launcher.slurm.submit import job_log, last_job, stop_mark
from ptm_dist.errors import RunDirectoryError
from ptm_dist.training.run_directory import RunDirectory

_POLL_SECONDS = 0.5


def stop(directory: RunDirectory, seconds: float, progress: Callable[[Job], None]) -> Job | None:
    """Have the newest job of a run save and end, and wait for that.

    Args:
        directory: of the run.
        seconds: how long to wait.
        progress: told how the job is, again and again.

    Returns: the job as it ended; None if Slurm has forgotten it by then.
    Raises: RunDirectoryError if no job of the run is alive; SlurmError if it is after that time.
    """
    job = last_job(directory)
    if job is None or not job.is_alive:
        raise RunDirectoryError(f"{directory.path} has no job that waits or runs")
    mark = stop_mark(directory, job.id)
    mark.touch()
    deadline = time.monotonic() + seconds
    told = False
    while True:
        told = _tell(directory, job, told)
        progress(job)
        time.sleep(_POLL_SECONDS)
        now = find_job(job.id)
        if now is None or not now.is_alive:
            mark.unlink(missing_ok=True)
            return now
        if time.monotonic() > deadline:
            raise SlurmError(
                f"job {job.id} is still {now.state} after {seconds:.0f} s, and will end when its step and checkpoint "
                f"are done; `scancel {job.id}` ends it without them"
            )
        job = now


def _tell(directory: RunDirectory, job: Job, told: bool) -> bool:
    """Take a waiting job out of the queue, signal a running one once; gives whether it was signalled."""
    if job.state == "PENDING":
        cancel(job.id)
    elif job.state == "RUNNING" and not told and _listens(directory, job.id):
        signal_script(job.id, "USR1")
        return True
    return told


def _listens(directory: RunDirectory, number: int) -> bool:
    """Whether the script of a job is ready for a signal; before that it would be killed, and looks at the mark."""
    log = job_log(directory, number)
    line = f" job {number}, life {restarts(number)}, on "
    return log.exists() and line in log.read_text(encoding="utf-8", errors="replace")
