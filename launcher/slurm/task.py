"""One process of a run in a Slurm job: `python -m launcher.slurm.task RECIPE`, started by srun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.environment import find_world
from launcher.failures import Failure, Kind, write_failure
from launcher.logs import open_log
from launcher.worker import keep_early_signals, run_recipe
from ptm_dist.training.world import World


def main(recipe_path: Path, logs: Path) -> None:
    """Run a recipe file as the rank that srun made of this process; `ptm train` does the same without logs.

    The output of every rank goes to a file, a failure is written beside it and ends the process at once, so that
    srun ends the others: exit code 2 for a user's mistake, 1 for anything else.
    """
    keep_early_signals()
    world = find_world(os.environ) or World.single()
    log = open_log(logs, world.rank, int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    try:
        run_recipe(recipe_path, logs)
    except Exception as error:
        failure = Failure.of(world.rank, error)
        write_failure(logs, failure)
        log.write(failure.traceback or f"error: {failure.message}\n")
        if world.rank == 0 or failure.kind is not Kind.USER:
            print(f"rank {world.rank}: {failure.message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if failure.kind is Kind.USER else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[1]).parents[1] / "logs")
