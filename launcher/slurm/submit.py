"""From a recipe to a job: check, write, hand in."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launcher.elastic.layouts import Fit, fit
from launcher.slurm.profile import ClusterProfile
from launcher.slurm.queue import Job, find_job, hand_in, refuse_too_much
from launcher.slurm.script import JobScript
from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.errors import RunDirectoryError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.loading import dump_recipe
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.metrics import read_rows
from ptm_dist.training.preflight import preflight
from ptm_dist.training.run_directory import RunDirectory

SLURM_FOLDER = "slurm"
"""Folder of a run directory with the script of its job and the recipe as it was submitted."""


def parse_nodes(text: str) -> tuple[int, int]:
    """Least and most nodes: `4` is 4 and 4, `2:8` is 2 and 8.

    Raises: UserError for anything else.
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise UserError(f"--nodes {text}: give a number of nodes such as 4, or the least and the most, such as 2:8")
    return least, most


def job_script(recipe: Recipe, nodes: tuple[int, int], profile: ClusterProfile) -> JobScript:
    """The job of a recipe; nothing is written.

    Raises: RecipeError if the recipe contradicts itself or fits no allowed number of nodes.
    """
    run = recipe.directory.resolve()
    return JobScript(
        name=recipe.name,
        run=run,
        work=Path.cwd(),
        recipe=run / SLURM_FOLDER / "recipe.yaml",
        nodes=nodes,
        profile=profile,
        python=profile.python or ("python" if profile.container is not None else sys.executable),
    )


def fits(recipe: Recipe, nodes: tuple[int, int], processes: int) -> dict[int, Fit]:
    """What the run would be on each number of nodes that it may get, by that number.

    Args:
        recipe: as loaded.
        nodes: least and most. If they are one number, the recipe's own layout must use them all.
        processes: on each node.

    Raises: LayoutError if no layout works on the least number; RecipeError for other mistakes.
    """
    least, most = nodes
    if least == most:
        check_recipe(recipe, least * processes, tokenizer_vocab_size=None)
    return {count: fit(recipe, count * processes) for count in range(least, most + 1)}


def check(script: JobScript, fits: Mapping[int, Fit]) -> None:
    """All that can be known to be wrong with the run, on every number of nodes; writes nothing into its directory."""
    with tempfile.TemporaryDirectory() as folder:
        for fitted in fits.values():
            preflight(fitted.recipe.model_copy(update={"run_dir": Path(folder) / script.name}), fitted.world_size)


def submit(recipe: Recipe, script: JobScript, fits: Mapping[int, Fit]) -> int:
    """Check a run, write its job into its directory and hand it in; returns the number of the job.

    Raises: UserError for what `ptm train` would refuse, if the run is alive already, or if Slurm refuses.
    """
    check(script, fits)
    least = fits[script.nodes[0]]
    preflight(least.recipe, least.world_size)
    directory = RunDirectory(script.run)
    job = last_job(directory)
    if job is not None and job.is_alive:
        raise RunDirectoryError(f"{script.run}: {job.describe()}; wait for it, or end it by: ptm stop {script.run}")
    with directory.locked():
        pass  # Refuses a run that is alive on this machine.
    # sbatch itself takes a job that the cluster can never run, and lets it wait.
    refuse_too_much(script.nodes[0], script.profile.gpus_per_node or 0, script.profile.partition)
    folder = script.run / SLURM_FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(script.recipe, dump_recipe(recipe))
    write_atomically(folder / "job.sh", script.text())
    number = hand_in(script.text())
    directory.event(
        "submit", job=number, nodes=list(script.nodes), processes_per_node=script.profile.processes_per_node
    )
    return number


def submissions(directory: RunDirectory) -> list[dict[str, Any]]:
    """Events of all submissions of a run, the newest last."""
    return [row for row in read_rows(directory.events) if row["event"] == "submit"]


def last_job(directory: RunDirectory) -> Job | None:
    """The newest job of a run, or None if there was none, or Slurm has forgotten it."""
    rows = submissions(directory)
    return find_job(rows[-1]["job"]) if rows else None


def stop_mark(directory: RunDirectory, number: int) -> Path:
    """The file that keeps a job from going back to the queue."""
    return directory.path / SLURM_FOLDER / f"stop-{number}"


def job_log(directory: RunDirectory, number: int) -> Path:
    """Where the output of a job goes."""
    return directory.logs / f"slurm-{number}.log"
