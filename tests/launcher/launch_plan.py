"""The parent program of the launch tests: `python launch_plan.py PLAN NPROC RESTARTS`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.elastic.coordinator import Patience
from launcher.elastic.launch import Place, coordinate
from launcher.elastic.work import Assignment
from launcher.failures import describe
from launcher.local import start_here


@dataclass(frozen=True)
class Plan:
    """What the workers of the launch tests do."""

    payload: dict[str, Any]
    processes: int
    entry: str = "tests.launcher.crash_worker:misbehave"

    def assign(self, processes: int, device_memory: int | None) -> Assignment:
        return Assignment(self.processes, f"{self.processes} processes", self.payload)


if __name__ == "__main__":
    import yaml

    plan, nproc, restarts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logs = plan.parent
    ending = coordinate(
        Plan(yaml.safe_load(plan.read_text()), nproc),
        Place(),
        logs,
        Patience(restarts=restarts),
        lambda logs: start_here(logs, nproc),
    )
    if ending.failure is not None:
        print(f"{ending.failure.kind}\n{describe(ending.failure, logs)}")
        sys.exit(1)
