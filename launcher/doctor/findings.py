"""What an examination finds, as data: findings, GPUs, and the report of a node."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    """As it should be."""
    WARNING = "warning"
    """A run works, slower or nearer to a failure than it should."""
    ERROR = "error"
    """A run on this node fails, or cannot be trusted."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: how much it matters.
        what: a word or two: `clock`, `GPU 3`.
        detail: what was found, with figures.
        advice: what to do; empty where all is well.
    """

    level: Level
    what: str
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Gpu:
    """A device as its driver describes it.

    Attributes:
        index: of the driver, not of CUDA_VISIBLE_DEVICES.
        uuid: the same on every node and after every restart.
        name: of the model.
        memory_total: bytes; None where the driver does not say.
        memory_free: bytes; None where the driver does not say.
    """

    index: int
    uuid: str
    name: str
    memory_total: int | None
    memory_free: int | None


@dataclass(frozen=True)
class Needs:
    """What a run asks of each node.

    Attributes:
        disk: bytes in the run directory.
        device_memory: bytes on each device.
    """

    disk: int = 0
    device_memory: int = 0


@dataclass(frozen=True)
class NodeReport:
    """All that was found on one node.

    Attributes:
        node: its name in the run.
        host: its name for itself.
        device: `cuda` or `cpu`: what a run with `launch.device=auto` uses.
        versions: of what must be the same on all nodes, and of the driver.
        cores: that this process may use.
        memory_free: bytes of main memory that can still be had.
        shm_free: bytes in /dev/shm; None where there is none.
        disk_free: bytes in the run directory; None if none was given or it does not answer.
        gpus: that this process may use.
        speeds: FLOP/s of each device that has computed something, by its name in torch.
        findings: one for everything that was looked at.
        time: when the report was made or sent (seconds since 1970, this node's clock).
    """

    node: str
    host: str
    device: str
    versions: Mapping[str, str]
    cores: int
    memory_free: int
    shm_free: int | None
    disk_free: int | None
    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]
    speeds: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps the node out of a run."""
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)

    def stamped(self) -> NodeReport:
        """The same, made now: what is compared with the clock of who receives it must be sent at once."""
        return dataclasses.replace(self, time=time.time())

    def with_findings(self, *more: Finding) -> NodeReport:
        """The same, with more found."""
        return dataclasses.replace(self, findings=(*self.findings, *more))

    def as_json(self) -> dict[str, Any]:
        """Plain values, for :meth:`of_json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> NodeReport:
        """What :meth:`as_json` gave."""
        findings = tuple(Finding(**{**each, "level": Level(each["level"])}) for each in values["findings"])
        return NodeReport(**{**values, "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"]), "findings": findings})


def merge(reports: tuple[NodeReport, ...]) -> NodeReport:
    """One report of a node from those of its processes, which may each see another device; the first one's counts."""
    first = reports[0]
    gpus = {gpu.uuid: gpu for report in reports for gpu in report.gpus}
    speeds = {device: speed for report in reports for device, speed in report.speeds.items()}
    findings = list(first.findings)
    for report in reports[1:]:
        seen = {finding.what for finding in findings}
        findings += [finding for finding in report.findings if finding.what not in seen]
    return dataclasses.replace(
        first,
        device="cuda" if gpus else first.device,
        speeds=speeds,
        gpus=tuple(sorted(gpus.values(), key=lambda gpu: gpu.index)),
        findings=tuple(findings),
    )
