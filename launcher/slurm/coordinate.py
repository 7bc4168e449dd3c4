"""The coordinator of a Slurm job: `python -m launcher.slurm.coordinate RECIPE ...`, on its first node."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path

from data_pipeline.errors import UserError
from launcher.elastic.address import HINT_VARIABLE
from launcher.elastic.launch import Place, train
from launcher.local import conclude
from launcher.slurm.script import BAD_NODES, REQUEUE_CODE


def main() -> int:
    """Train the recipe on the nodes whose agents come; returns the exit code for the job's script."""
    parser = argparse.ArgumentParser(prog="python -m launcher.slurm.coordinate")
    parser.add_argument("recipe", type=Path, help="recipe as it was submitted")
    parser.add_argument("--nodes", required=True, help="least and most nodes, such as 2:8")
    parser.add_argument("--expect", type=int, required=True, help="nodes that the job has")
    options = parser.parse_args()
    least, most = map(int, options.nodes.split(":"))
    host, _, port = os.environ[HINT_VARIABLE].rpartition(":")
    try:
        return _train(options.recipe, Place((least, most), host, options.expect, int(port)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(recipe: Path, place: Place) -> int:
    from ptm_dist.recipe.loading import load_recipe

    loaded = load_recipe(recipe)
    ending = train(loaded, place)
    _remember(ending.bad_nodes, recipe.parent / BAD_NODES)
    code = conclude(ending, loaded.directory / "logs")
    return REQUEUE_CODE if ending.too_few else code


def _remember(nodes: Collection[str], path: Path) -> None:
    """Add nodes to the file from which the job's script takes those that it does not want again."""
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(f"{node}\n" for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
