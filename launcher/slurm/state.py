"""Where a run stands: its job, its last figures, its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.slurm.queue import Job
from launcher.slurm.submit import last_job, submissions
from ptm_dist.checkpoint.store import latest
from ptm_dist.errors import RunDirectoryError
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.run_directory import RunDirectory


@dataclass(frozen=True)
class RunState:
    """What can be known of a run from outside.

    Attributes:
        directory: of the run.
        job: its newest job, if Slurm remembers it.
        submitted: number of the newest job, if there was one.
        step: last step in its metrics; 0 if there is none.
        total_steps: of the run.
        loss: of that step.
        tokens_per_second: of the steps around it.
        checkpoint: the newest complete one.
        checkpoint_step: its step.
        lives: times that the run started, on Slurm or elsewhere.
    """

    directory: Path
    job: Job | None
    submitted: int | None
    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    checkpoint: Path | None
    checkpoint_step: int
    lives: int

    @property
    def is_finished(self) -> bool:
        """Whether all steps are in a checkpoint."""
        return self.checkpoint_step >= self.total_steps

    def describe(self) -> list[str]:
        """Lines for people."""
        if self.submitted is None:
            job = "never submitted to Slurm"
        else:
            job = self.job.describe() if self.job is not None else f"job {self.submitted} has ended"
        figures = f"step {self.step} of {self.total_steps}"
        if self.loss is not None:
            figures += f", loss {self.loss:.4f}, {self.tokens_per_second:,.0f} tokens/s"
        saved = self.checkpoint.name if self.checkpoint is not None else "none yet"
        done = ["finished"] if self.is_finished else []
        return [str(self.directory), job, figures, f"newest checkpoint: {saved}", f"starts: {self.lives}", *done]


def known_run(path: Path) -> RunDirectory:
    """A run directory that exists.

    Raises: RunDirectoryError otherwise.
    """
    directory = RunDirectory(path)
    if not directory.recipe.is_file():
        raise RunDirectoryError(f"{path} is no run directory: it has no {directory.recipe.name}; see `ptm status`")
    return directory


def run_state(directory: RunDirectory) -> RunState:
    """Ask Slurm, if the run was ever submitted, and read the run's files.

    Raises: SlurmError if Slurm does not answer.
    """
    rows = [row for row in read_rows(directory.metrics) if row["kind"] == "train"]
    last: dict[str, Any] = rows[-1] if rows else {}
    checkpoint = latest(directory.checkpoints)
    jobs = submissions(directory)
    return RunState(
        directory=directory.path,
        job=last_job(directory),
        submitted=jobs[-1]["job"] if jobs else None,
        step=last.get("step", 0),
        total_steps=load_recipe(directory.recipe).training.steps,
        loss=last["losses"][-1] if last else None,
        tokens_per_second=last.get("tokens_per_second"),
        checkpoint=checkpoint.path if checkpoint is not None else None,
        checkpoint_step=checkpoint.step if checkpoint is not None else 0,
        lives=sum(row["event"] == "start" for row in read_rows(directory.events)),
    )
