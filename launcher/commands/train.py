"""`ptm train`: run a recipe here, on local processes, or as one rank of a world that exists already."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json, stdout_on_stderr

if TYPE_CHECKING:
    from ptm_dist.recipe.schema import Recipe
    from ptm_dist.training.run import RunSummary
    from ptm_dist.training.world import World


DEFAULT_SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=5"
EXAMPLES = examples(
    "ptm train configs/demo/gpt.yaml",
    "ptm train configs/demo/gpt.yaml --nproc 2 layout.zero_stage=3",
    "ptm train configs/gpt/gpt2-124m.yaml --nproc 8 --dry-run layout.tensor_parallel=2",
    "ptm train configs/gpt/gpt2-124m.yaml --hosts hosts.txt --nproc 8 --nodes 2",
    "torchrun --nproc-per-node 8 -m launcher train configs/gpt/gpt2-124m.yaml",
)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's.")
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes to start on this machine, or on each of --hosts.")
    ] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="File with machines to run on, a line each (`name slots=8`), reached by ssh.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="With --hosts: machines that are enough to go on with; left out: all.")
    ] = None,
    ssh: Annotated[str, typer.Option(help="With --hosts: command before a machine's name.")] = DEFAULT_SSH,
    address: Annotated[str, typer.Option(help="With --hosts: this machine's address, if it must be told.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, its size, memory and FLOPs; start nothing.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="With --dry-run: go through a step of one rank on fake tensors as well.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved recipe; start nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train, or continue, the run that a recipe describes.

    Without --nproc and --hosts the run joins the world that torchrun, srun or mpirun made, or is a single process.
    The same command continues a run from its last checkpoint, on whatever layout.
    """
    from ptm_dist.recipe.loading import dump_recipe, load_recipe

    if simulate and not dry_run:
        raise UserError("--simulate goes with --dry-run; add it, or leave out --simulate")
    loaded = load_recipe(recipe, overrides or [])
    if print_config:
        print_json(loaded) if as_json else print(dump_recipe(loaded), end="")
    elif dry_run:
        _print_plan(loaded, nproc, as_json, simulate)
    elif hosts is not None:
        raise typer.Exit(_run_on_hosts(loaded, hosts, nproc or 1, nodes, ssh, address))
    elif nodes is not None:
        raise UserError("--nodes goes with --hosts; add it, or use `ptm submit --nodes` for a Slurm job")
    else:
        raise typer.Exit(run_recipe(loaded, nproc, as_json))


def run_recipe(recipe: Recipe, nproc: int | None, as_json: bool = False) -> int:
    """Check a recipe and run it; what `ptm train` does.

    Args:
        recipe: as loaded.
        nproc: processes to start on this machine; None joins the world of the environment, or runs alone.
        as_json: print how the run ended in JSON on standard output, everything else on standard error.

    Returns: exit code.
    Raises: UserError for all that a user can mend.
    """
    from launcher.environment import find_world
    from launcher.mpi import world_of_mpi
    from ptm_dist.training.world import World

    world = find_world(os.environ, world_of_mpi)
    if nproc is None:
        return _run_in(world or World.single(), recipe, as_json)
    if world is not None and world.world_size > 1:
        raise UserError(
            f"--nproc {nproc}: this process is already rank {world.rank} of {world.world_size} started by "
            f"{world.origin}; leave out --nproc to join them"
        )
    return _run_locally(recipe, nproc, as_json)


def _run_on_hosts(recipe: Recipe, path: Path, nproc: int, least: int | None, ssh: str, address: str) -> int:
    from launcher.elastic.layouts import fit
    from launcher.hosts import launch, read_hosts
    from ptm_dist.training.preflight import preflight

    hosts = read_hosts(path, nproc)
    if least is not None and least > len(hosts):
        raise UserError(f"--nodes {least}: {path} names {len(hosts)} machines; give a number up to that")
    processes = sum(host.processes for host in hosts)
    fitted = fit(recipe, processes)
    preflight(recipe if least is None else fitted.recipe, processes if least is None else fitted.world_size)
    return launch(recipe, hosts, least or len(hosts), ssh, address)


def _run_locally(recipe: Recipe, nproc: int, as_json: bool) -> int:
    from launcher.local import launch
    from launcher.outcome import read_outcome
    from ptm_dist.training.preflight import preflight

    preflight(recipe, nproc)
    if not as_json:
        return launch(recipe, nproc)
    with stdout_on_stderr():
        code = launch(recipe, nproc)
    if code == 0:
        print_json(read_outcome(recipe.directory))
    return code


def _run_in(world: World, recipe: Recipe, as_json: bool) -> int:
    """All ranks of a world come here; what they would all say, rank 0 says."""
    from launcher.outcome import ending

    try:
        if as_json:
            with stdout_on_stderr():
                summary = _checked_run(world, recipe)
        else:
            summary = _checked_run(world, recipe)
    except UserError as error:
        if world.rank == 0:
            raise
        if world.local_rank == 0:  # what is wrong with this machine alone, the first rank does not know
            print(f"error on {world.node}: {error}", file=sys.stderr)
        return 2
    if world.rank == 0:
        print_json(summary) if as_json else print(ending(summary))
    return 0


def _checked_run(world: World, recipe: Recipe) -> RunSummary:
    from ptm_dist.training.preflight import preflight
    from ptm_dist.training.processes import settle
    from ptm_dist.training.run import run

    preflight(recipe, world.world_size)
    settle(recipe.launch.device)
    return run(recipe, world)


def _print_plan(recipe: Recipe, nproc: int | None, as_json: bool, simulate: bool) -> None:
    from ptm_dist.recipe.report import dry_run_report

    world_size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if nproc is None and not world_size.isdecimal():
        raise UserError(f"the environment variable WORLD_SIZE={world_size!r} is not a whole number")
    report = dry_run_report(recipe, nproc or int(world_size), simulates=simulate)
    print_json(report.as_dict()) if as_json else print(report.text())
