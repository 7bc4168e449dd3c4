"""`ptm doctor`: is this machine, or are all nodes of a job, fit to train?"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json, stdout_on_stderr

if TYPE_CHECKING:
    from launcher.doctor.diagnosis import Diagnosis
    from launcher.doctor.together import Subject
    from ptm_dist.training.world import World

EXAMPLES = examples(
    "ptm doctor",
    "ptm doctor configs/gpt/gpt2-124m.yaml --nproc 2",
    "srun -N 4 --ntasks-per-node 8 ptm doctor configs/gpt/gpt2-124m.yaml --json",
    "torchrun --nproc-per-node 8 -m launcher doctor --folder /shared/runs",
)

_LONGEST_SECONDS = 1800.0


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe whose needs are looked at as well.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's.")
    ] = None,
    nproc: Annotated[int | None, typer.Option(min=2, help="Processes to start on this machine.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder that all nodes share; left out: the recipe's run directory, or where you are."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; left out: the recipe's launch.device, or auto.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for who does not answer.")] = 60,
    as_json: JsonFlag = False,
) -> None:
    """Examine this machine, or under srun, mpirun or torchrun all nodes and the network between them.

    Exit code 0: fit to train; 1: a node is bad, and is named with the reason.
    """
    from launcher.environment import find_world
    from launcher.mpi import world_of_mpi

    # Before torch is loaded: its sockets would tell of each attempt, with stacks; what fails is said in words anyway.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    world = find_world(os.environ, world_of_mpi)
    subject = _subject(recipe, overrides or [], folder, device, timeout)
    if nproc is not None:
        _refuse_two_worlds(world, nproc)
        from launcher.doctor.local import run_here

        raise typer.Exit(run_here(_without_nproc(sys.argv[1:]), nproc))
    if world is not None and world.world_size > 1:
        _examine_together(subject, world, as_json)
    from launcher.doctor.together import examine_alone

    with stdout_on_stderr():
        diagnosis = examine_alone(subject)
    _print(diagnosis, as_json)
    raise typer.Exit(0 if diagnosis.is_sound else 1)


def _subject(
    recipe: Path | None, overrides: list[str], folder: Path | None, device: str | None, timeout: float
) -> Subject:
    from launcher.doctor.together import Subject
    from ptm_dist.recipe.loading import load_recipe

    if device not in (None, "auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    loaded = load_recipe(recipe, overrides) if recipe is not None else None
    return Subject(
        folder=folder or (loaded.directory if loaded is not None else Path.cwd()),
        recipe=loaded,
        device=device or (loaded.launch.device if loaded is not None else "auto"),
        patience=timeout,
    )


def _examine_together(subject: Subject, world: World, as_json: bool) -> NoReturn:
    """One process of several: only the first one prints, and none outlives its patience."""
    from launcher.doctor.roll import SilenceError
    from launcher.doctor.together import examine_together, node_of

    guard = threading.Timer(_LONGEST_SECONDS, _leave, (1,))
    guard.daemon = True
    guard.start()
    try:
        with stdout_on_stderr():
            diagnosis, is_sound = examine_together(subject, world)
    except SilenceError as error:
        print(f"rank {world.rank} on {node_of(world)}: {error}", file=sys.stderr)
        _leave(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(1)
    if diagnosis is not None:
        _print(diagnosis, as_json)
    _leave(0 if is_sound else 1)


def _leave(code: int) -> NoReturn:
    """End at once: what hangs in the network or on a device would keep the interpreter from ending."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refuse_two_worlds(world: World | None, nproc: int) -> None:
    if world is not None and world.world_size > 1:
        raise UserError(
            f"--nproc {nproc}: this process is already rank {world.rank} of {world.world_size} started by "
            f"{world.origin}; leave out --nproc to join them"
        )


def _without_nproc(arguments: list[str]) -> list[str]:
    kept, skips = [], False
    for argument in arguments:
        if not skips and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skips = argument == "--nproc"
    return kept


def _print(diagnosis: Diagnosis, as_json: bool) -> None:
    from launcher.doctor.table import print_diagnosis

    if as_json:
        print_json({**dataclasses.asdict(diagnosis), "is_sound": diagnosis.is_sound})
    else:
        print_diagnosis(diagnosis)
