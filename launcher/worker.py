"""One process of a run: `python -m launcher.worker RECIPE`, started on this machine by launcher.local."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launcher.environment import find_world
from launcher.failures import Failure, Kind, write_failure
from launcher.logs import open_log
from ptm_dist.training.world import World

AGENT_VARIABLE = "PTM_AGENT_PID"
_PR_SET_PDEATHSIG = 1


def main(recipe_path: Path) -> None:
    """Run a recipe file as one rank of the world found in the environment; logs go beside the file.

    A failure is written beside the logs and ends the process at once, with 2 for a user's mistake and 1 for
    anything else: a slow teardown would only delay what the other ranks learn.
    """
    die_with_agent(int(os.environ[AGENT_VARIABLE]))
    keep_early_signals()
    logs = recipe_path.parent
    rank = int(os.environ["RANK"])
    log = open_log(logs, rank, int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    try:
        run_recipe(recipe_path, logs)
    except Exception as error:
        failure = Failure.of(rank, error)
        write_failure(logs, failure)
        log.write(failure.traceback or f"error: {failure.message}\n")
        _leave(2 if failure.kind is Kind.USER else 1)


def run_recipe(recipe_path: Path, logs: Path) -> None:
    """The run itself, after which rank 0 says and writes how it ended."""
    from launcher.outcome import ending, write_outcome
    from ptm_dist.recipe.loading import load_recipe
    from ptm_dist.training.run import run

    world = find_world(os.environ) or World.single()
    recipe = load_recipe(recipe_path)
    summary = run(recipe, world)
    if world.rank == 0:
        write_outcome(summary)
        print(ending(summary))


def die_with_agent(agent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, so that kill -9 leaves no orphan (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:
        _leave(1)


def keep_early_signals() -> None:
    """A stop signal that comes while libraries are still being imported waits until somebody can act on it."""

    def deliver_later(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=_deliver_again, args=(number, deliver_later), daemon=True).start()

    signal.signal(signal.SIGTERM, deliver_later)


def _deliver_again(number: int, early_handler: object) -> None:
    while signal.getsignal(number) is early_handler:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
