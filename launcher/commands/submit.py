"""`ptm submit`: run a recipe as a Slurm job."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.output import JsonFlag, examples, print_json

EXAMPLES = examples(
    "ptm submit configs/gpt/gpt2-124m.yaml --nodes 4 --cluster configs/cluster/h100-pyxis.yaml",
    "ptm submit configs/gpt/gpt2-124m.yaml --nodes 2:8 --cluster configs/cluster/h100-pyxis.yaml --time 8:00:00",
    "ptm submit configs/demo/gpt.yaml --nodes 2 --cluster configs/cluster/cpu.yaml --dry-run layout.zero_stage=1",
)


def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    cluster: Annotated[
        Path, typer.Option(envvar="PTM_CLUSTER", help="What the cluster is like: a file as in configs/cluster/.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's.")
    ] = None,
    nodes: Annotated[str, typer.Option(help="Number of nodes, or the least and the most: 2:8.")] = "1",
    time: Annotated[str | None, typer.Option(help="Time limit in place of the cluster file's.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition in place of the cluster file's.")] = None,
    account: Annotated[str | None, typer.Option(help="Account in place of the cluster file's.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service in place of the cluster file's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job script and what Slurm says of it; submit nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check a recipe, write the script of a Slurm job into its run directory, and hand it in.

    The job saves before its time limit and goes back to the queue until the run is finished. The same command
    continues a run that was stopped, on whatever number of nodes.
    """
    from launcher.slurm.profile import load_profile
    from launcher.slurm.submit import check, fits, job_script, parse_nodes
    from launcher.slurm.submit import submit as hand_in
    from ptm_dist.recipe.loading import load_recipe

    asked = parse_nodes(nodes)
    profile = load_profile(cluster, {"time": time, "partition": partition, "account": account, "qos": qos})
    loaded = load_recipe(recipe, overrides or [])
    script = job_script(loaded, asked, profile)
    fitted = fits(loaded, asked, profile.processes_per_node)
    if dry_run:
        check(script, fitted)
        text, opinion = script.text(), _opinion(script.text())
        print_json({"script": text, "slurm": opinion}) if as_json else print(text, end="")
        print(opinion, file=sys.stderr)
        return
    job = hand_in(loaded, script, fitted)
    if as_json:
        worlds = {count: {"processes": one.world_size, "layout": one.layout} for count, one in fitted.items()}
        print_json({"job": job, "run": script.run, "nodes": worlds})
        return
    print(f"job {job} will run {loaded.name} in {script.run}")
    for count, one in fitted.items():
        print(f"  on {count} node{'s' if count > 1 else ''}: {one.world_size} processes, {one.layout}")
    print(f"see it by: ptm status {loaded.directory}; ptm logs {loaded.directory} -f; ptm stop {loaded.directory}")


def _opinion(script: str) -> str:
    """What Slurm would do with a script, where there is one."""
    from launcher.slurm.queue import hand_in_nothing

    if shutil.which("sbatch") is None:
        return "note: there is no sbatch here, so nobody asked Slurm whether it would take this"
    return hand_in_nothing(script)
