"""The process in which ranks are simulated: reads tasks from one file, writes what was observed to another."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from ptm_dist.accounting.simulate import simulate_here


def main(given: str, found: str) -> None:
    """Simulate the tasks of a file one after the other."""
    Path(found).write_bytes(pickle.dumps([simulate_here(task) for task in pickle.loads(Path(given).read_bytes())]))


if __name__ == "__main__":
    main(*sys.argv[1:])
