"""A run on virtual nodes of this machine: `python -m tests.launcher.elastic_cluster RECIPE LEAST n1=2 n2=2 ...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.elastic.agents import Started
from launcher.elastic.launch import Place, keeper_command, train
from launcher.local import conclude
from ptm_dist.recipe.loading import load_recipe


def main() -> int:
    recipe = load_recipe(Path(sys.argv[1]))
    sizes = {node: int(count) for node, count in (word.split("=") for word in sys.argv[3:])}

    def start(logs: Path) -> Started:
        return Started(
            {node: keeper_command(logs, node, count, examines=True) for node, count in sizes.items()}, os.environ
        )

    ending = train(recipe, Place((int(sys.argv[2]), len(sizes))), start)
    return conclude(ending, recipe.directory / "logs")


if __name__ == "__main__":
    sys.exit(main())
