"""``python -m benchmarks.pipeline.candidates PROJECT TASK JSON``: do one task; figures are the last line of output."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module


def main() -> None:
    """Bind to the cores asked for before anything is imported that counts them."""
    project, task, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    cores = options.pop("cores", None)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    figures = getattr(import_module(f"benchmarks.pipeline.candidates.{project}"), task)(**options)
    print("\n" + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
