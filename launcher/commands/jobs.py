"""`ptm status`, `ptm logs`, `ptm stop`: runs that are jobs, from outside."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.slurm.queue import Job
    from ptm_dist.training.run_directory import RunDirectory

STATUS_EXAMPLES = examples("ptm status", "ptm status runs/gpt2-124m", "ptm status runs/gpt2-124m --json")
LOGS_EXAMPLES = examples(
    "ptm logs runs/gpt2-124m -f", "ptm logs runs/gpt2-124m --rank 3", "ptm logs runs/gpt2-124m --first-error"
)
STOP_EXAMPLES = examples("ptm stop runs/gpt2-124m")

_ASK_SECONDS = 5.0
_SAY_SECONDS = 10.0

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]


def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run directory; left out: all of your jobs.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say where a run stands: its job in the queue, its last step and loss, its newest checkpoint."""
    if run is None:
        _all_jobs(as_json)
        return
    from launcher.slurm.state import known_run, run_state

    state = run_state(known_run(run))
    if as_json:
        print_json({**dataclasses.asdict(state), "is_finished": state.is_finished})
    else:
        print("\n".join(state.describe()))


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="One process; left out: the job, or rank 0.")] = None,
    first_error: Annotated[
        bool, typer.Option("--first-error", help="Only the newest failure: which rank was first, and how.")
    ] = False,
) -> None:
    """Print what a run said."""
    from launcher.logs import follow as grow
    from launcher.slurm.state import known_run

    directory = known_run(run)
    job_log = _job_log(directory)
    if first_error:
        _print_first_error(directory)
        return
    path = directory.logs / f"rank_{rank or 0}.log" if rank is not None or job_log is None else job_log
    if not path.exists() and not follow:
        raise UserError(f"{path} does not exist: the run has not started, or has fewer processes")
    for text in grow(path, _ended(directory) if follow else lambda: True):
        sys.stdout.write(text)
        sys.stdout.flush()


def stop(
    run: Run,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the checkpoint.")] = 600,
    as_json: JsonFlag = False,
) -> None:
    """Have a run save after the step it is in, and end its job; `ptm submit` continues it."""
    from launcher.slurm.state import known_run, run_state
    from launcher.slurm.stop import stop as stop_job

    directory = known_run(run)
    job = stop_job(directory, timeout, _progress())
    state = run_state(directory)
    if as_json:
        print_json({**dataclasses.asdict(state), "is_finished": state.is_finished})
        return
    saved = f"{state.checkpoint.name} is saved" if state.checkpoint is not None else "nothing was saved"
    ended = job.describe() if job is not None else f"job {state.submitted} has ended"
    print(f"{ended}; {saved}; {'the run is finished' if state.is_finished else '`ptm submit` continues the run'}")


def _all_jobs(as_json: bool) -> None:
    from launcher.slurm.queue import my_jobs
    from launcher.slurm.script import COMMENT_PREFIX

    jobs = [job for job in my_jobs() if job.comment.startswith(COMMENT_PREFIX)]
    if as_json:
        print_json([{**dataclasses.asdict(job), "run": job.comment.removeprefix(COMMENT_PREFIX)} for job in jobs])
    elif not jobs:
        print("no job of `ptm submit` waits or runs")
    else:
        rows = [(job.id, job.state, job.nodes or job.reason, job.comment.removeprefix(COMMENT_PREFIX)) for job in jobs]
        print_table([("job", "state", "where", "run"), *rows])


def _job_log(directory: RunDirectory) -> Path | None:
    from launcher.slurm.submit import job_log, submissions

    jobs = submissions(directory)
    return job_log(directory, jobs[-1]["job"]) if jobs else None


def _print_first_error(directory: RunDirectory) -> None:
    from launcher.failures import describe
    from launcher.first_error import first_error

    failure = first_error(directory)
    print(describe(failure, directory.logs) if failure is not None else "no rank failed")


def _ended(directory: RunDirectory) -> Callable[[], bool]:
    """Whether the newest job is over; Slurm is asked now and then. A run without jobs is never over."""
    from launcher.slurm.submit import last_job, submissions

    if not submissions(directory):
        return lambda: False
    asked = [0.0]

    def over() -> bool:
        if time.monotonic() - asked[0] < _ASK_SECONDS:
            return False
        asked[0] = time.monotonic()
        job = last_job(directory)
        return job is None or not job.is_alive

    return over


def _progress() -> Callable[[Job], None]:
    """Tells the state of a job when it changes, and now and then."""
    said: list[tuple[str, float]] = [("", 0.0)]

    def tell(job: Job) -> None:
        state, when = said[0]
        if job.state != state or time.monotonic() - when > _SAY_SECONDS:
            print(f"{job.describe()}; it will save after its step and end", file=sys.stderr)
            said[0] = (job.state, time.monotonic())

    return tell
