"""Start a run as several processes of this machine, and say how it ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from launcher.elastic.agents import Started
from launcher.elastic.coordinator import Ending
from launcher.elastic.launch import Place, keeper_command, train
from launcher.failures import describe
from ptm_dist.recipe.schema import Recipe

NODE = "localhost"


def launch(recipe: Recipe, nproc: int) -> int:
    """Run a recipe as `nproc` processes; returns when all have ended.

    Logs of all ranks are in ``<run directory>/logs/``, rank 0 prints here too. SIGINT and SIGTERM make the
    workers checkpoint and finish; a second one kills them.

    Returns: exit code, 0 or 1; why it is 1 was printed to standard error.
    Raises: UserError if a worker raised one.
    """
    ending = train(recipe, Place(), lambda logs: start_here(logs, nproc))
    return conclude(ending, recipe.directory / "logs")


def start_here(logs: Path, nproc: int) -> Started:
    """An agent on this machine for `nproc` processes."""
    return Started({NODE: keeper_command(logs, NODE, nproc)}, os.environ)


def conclude(ending: Ending, logs: Path) -> int:
    """What a launch command does at the end: exit code, and for a failure the words on standard error.

    Raises: UserError if the failure is one.
    """
    failure = ending.failure
    if failure is None:
        return 0
    if failure.is_explained:
        raise UserError(describe(failure, logs))
    print(f"error: {describe(failure, logs)}", file=sys.stderr)
    return 1
