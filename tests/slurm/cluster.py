"""A real Slurm of four nodes for the tests of a module."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.virtual_cluster import VirtualCluster, why_not

_WAIT_SECONDS = 150.0


@dataclass(frozen=True)
class Slurm:
    """The cluster, and what tests ask of it."""

    cluster: VirtualCluster

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, by its own names."""
        shown = self.cluster.command("scontrol", "--oneliner", "show", "job", str(number)).stdout
        return dict(item.split("=", 1) for item in shown.split() if "=" in item)

    def is_idle(self, count: int) -> bool:
        """Whether so many nodes wait for work."""
        states = self.cluster.command("sinfo", "-h", "-p", "low", "-N", "-o", "%T").stdout.split()
        return states.count("idle") >= count

    def wait(self, number: int) -> dict[str, str]:
        """The job when it has ended."""
        wait_for(lambda: self.job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"))
        return self.job(number)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    cluster = VirtualCluster(tmp_path_factory.mktemp("slurm"), nodes=4)
    cluster.up()
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM")}
    os.environ["SLURM_CONF"] = str(cluster.configuration)
    try:
        yield Slurm(cluster)
    finally:
        cluster.down()
        del os.environ["SLURM_CONF"]
        os.environ.update(before)
    assert not cluster.pids()


def wait_for(condition: Callable[[], bool], seconds: float = _WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""
