"""Run some work on some nodes, with a coordinator in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.elastic.agents import Agents, Elsewhere
from launcher.elastic.coordinator import Coordinator, Ending, Patience
from launcher.elastic.work import Training, Work
from ptm_dist.errors import DiskFullError
from ptm_dist.recipe.schema import LaunchSection, Recipe

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Place:
    """Where a run is computed.

    Attributes:
        nodes: least and most of them.
        host: name or number under which they reach this machine.
        expected: nodes to wait for at the start; None: the most.
        port: to listen on; 0: any that is free.
    """

    nodes: tuple[int, int] = (1, 1)
    host: str = "127.0.0.1"
    expected: int | None = None
    port: int = 0


def train(recipe: Recipe, place: Place, start: Callable[[Path], Agents] = lambda logs: Elsewhere()) -> Ending:
    """Train a recipe on whatever nodes come, to its end, to a stop, or until it cannot go on.

    SIGINT, SIGTERM and SIGHUP have the workers checkpoint and finish; a second one kills them.

    Args:
        recipe: checked by :func:`ptm_dist.training.preflight.preflight`.
        place: where.
        start: starts the agents, given the folder of logs, unless somebody else does.

    Raises: UserError if the run is alive already, or its directory cannot be used.
    """
    from ptm_dist.training.run_directory import RunDirectory

    directory = RunDirectory(recipe.directory)
    directory.prepare(recipe)
    with directory.locked():
        pass  # Refuses here, before the logs of a run that is alive are touched; rank 0 takes it for good.

    def event(kind: str, **values: Any) -> None:
        try:
            directory.event(kind, **values)
        except DiskFullError as error:
            say(f"warning: not in the run's history: {kind}: {error}")

    return coordinate(Training(recipe), place, directory.logs, patience_of(recipe.launch), start, event=event)


def coordinate(
    work: Work,
    place: Place,
    logs: Path,
    patience: Patience,
    start: Callable[[Path], Agents] = lambda logs: Elsewhere(),
    event: Callable[..., None] = lambda kind, **values: None,
) -> Ending:
    """Run any work; see :func:`train`. `logs` is the folder of that name in the run directory."""
    coordinator = Coordinator(
        work, place.nodes, place.expected or place.nodes[1], logs, place.host, place.port, patience, event, say
    )
    with stop_signals_go_to(coordinator.request_stop):
        return coordinator.serve(lambda: start(logs))


def patience_of(section: LaunchSection) -> Patience:
    """What a recipe says of waiting."""
    return Patience(
        gather=section.gather_seconds,
        wait=section.wait_seconds,
        silence=section.silence_seconds,
        step=section.hang_seconds,
        start=section.start_seconds,
        stopped=section.stopped_seconds,
        restarts=section.max_restarts,
    )


def keeper_command(logs: Path, node: str, processes: int, *, examines: bool = False) -> list[str]:
    """The program that stands for a node in a run; where there are several, each shall examine itself first."""
    command = [sys.executable, "-m", "launcher.elastic.keeper", str(logs)]
    return [*command, "--node", node, "--processes", str(processes), *(["--examine"] if examines else [])]


def say(text: str) -> None:
    """A line for who watches."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def stop_signals_go_to(request_stop: Callable[[int], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (unless ignored, as under nohup) ask for a stop while the body runs."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: request_stop(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
