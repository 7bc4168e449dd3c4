"""The parent program of the launch tests: `python launch_plan.py PLAN NPROC RESTARTS`."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.failures import describe
from launcher.local import run_workers

if __name__ == "__main__":
    plan = Path(sys.argv[1])
    failure = run_workers(plan, int(sys.argv[2]), int(sys.argv[3]), "tests.launcher.crash_worker")
    if failure is not None:
        print(f"{failure.kind}\n{describe(failure, plan.parent)}")
        sys.exit(1)
