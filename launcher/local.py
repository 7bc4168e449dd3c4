"""Start a run as several processes of this machine, and say how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError
from launcher.failures import Failure, Kind, describe, first_cause, remove_failures
from launcher.worker import AGENT_VARIABLE
from ptm_dist.recipe.schema import Recipe

_LAUNCH_FILE = "launch.yaml"


def launch(recipe: Recipe, nproc: int) -> int:
    """Run a recipe as `nproc` processes; returns when all have ended.

    Logs of all ranks are in ``<run directory>/logs/``, rank 0 prints here too. SIGINT and SIGTERM make the
    workers checkpoint and finish; a second one kills them.

    Returns: exit code, 0 or 1; why it is 1 was printed to standard error.
    Raises: UserError if a worker raised one.
    """
    from ptm_dist.checkpoint.files import write_atomically
    from ptm_dist.recipe.loading import dump_recipe
    from ptm_dist.training.run_directory import RunDirectory

    directory = RunDirectory(recipe.directory)
    directory.prepare(recipe)
    with directory.locked():
        pass  # Refuses here, before the logs of a run that is alive are touched; rank 0 takes it for good.
    remove_failures(directory.logs)
    launch_file = directory.logs / _LAUNCH_FILE
    write_atomically(launch_file, dump_recipe(recipe))

    def note(failure: Failure, left: int) -> None:
        directory.event("restart", rank=failure.rank, cause=failure.message, restarts_left=left)

    failure = run_workers(launch_file, nproc, recipe.launch.max_restarts, note=note)
    if failure is None:
        return 0
    if failure.kind is Kind.USER:
        raise UserError(describe(failure, directory.logs))
    print(f"error: {describe(failure, directory.logs)}", file=sys.stderr)
    return 1


def run_workers(
    launch_file: Path,
    nproc: int,
    max_restarts: int,
    module: str = "launcher.worker",
    note: Callable[[Failure, int], None] = lambda failure, left: None,
) -> Failure | None:
    """Run `python -m module launch_file` as `nproc` ranks; failures are looked for beside the file.

    Args:
        launch_file: the one argument of the module.
        nproc: ranks.
        max_restarts: how often all ranks start again after a failure.
        module: what each rank runs.
        note: told the cause of each restart and how many are left.

    Returns: why the last attempt failed, or None if it did not.
    """
    from launcher.agent import LocalAgent, local_spec, silence_elastic, stop_signals_go_to

    logs = launch_file.parent

    def on_restart(failure: Failure, left: int) -> None:
        print(f"restarting all ranks ({left} more allowed) after: {describe(failure, logs)}", file=sys.stderr)
        note(failure, left)
        remove_failures(logs)

    silence_elastic()
    with _environment(worker_environment(os.environ, nproc)):
        spec = local_spec(sys.executable, ("-m", module, str(launch_file)), nproc, max_restarts)
        agent = LocalAgent(spec, lambda exits: first_cause(logs, exits), on_restart)
        try:
            with stop_signals_go_to(agent):
                failed = agent.run().is_failed()
        finally:
            spec.rdzv_handler.shutdown()
    return agent.failure if failed else None


def worker_environment(environ: Mapping[str, str], nproc: int) -> dict[str, str]:
    """What workers find in their environment besides what this process has; the user's own choice wins."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // nproc)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONUNBUFFERED": "1",
    }
    return {
        **{name: value for name, value in defaults.items() if name not in environ},
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",
        AGENT_VARIABLE: str(os.getpid()),
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
