"""A diagnosis in words: a table of nodes, what is wrong and what to do, the network, the verdict."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from launcher.doctor.compare import describe_gpus, listed
from launcher.doctor.diagnosis import Diagnosis
from launcher.doctor.findings import Finding, Level, NodeReport
from launcher.doctor.pairs import speeds
from launcher.doctor.versions import CODE

if TYPE_CHECKING:
    from launcher.doctor.fabric import Fabric

_WIDTH = 160
_MIB = 1 << 20
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print it on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_table(diagnosis))
    for line in _lines(diagnosis):
        console.print(line, markup=False, soft_wrap=True)


def _table(diagnosis: Diagnosis) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("node", "device", "cores", "memory", "/dev/shm", "disk", "network", "torch", "code", "verdict"):
        table.add_column(
            name, justify="right" if name in ("cores", "memory", "/dev/shm", "disk", "network") else "left"
        )
    network = _speed_of_nodes(diagnosis)
    for report in diagnosis.reports:
        level = _level(diagnosis, report)
        table.add_row(
            report.node,
            describe_gpus(report) if report.gpus else "CPU",
            str(report.cores),
            _gib(report.memory_free),
            _gib(report.shm_free),
            _gib(report.disk_free),
            _speed(network.get(report.node)),
            report.versions.get("torch", "-"),
            report.versions[CODE],
            f"[{_STYLES[level]}]{'bad' if level is Level.ERROR else level}[/]",
        )
    return table


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield from _findings(diagnosis.reports)
    yield from (f"warning  {text}" for text in diagnosis.verdict.warnings)
    if diagnosis.fabric is not None:
        yield from _network(diagnosis.fabric, diagnosis.meeting)
    for node, reason in diagnosis.verdict.bad.items():
        yield f"bad      {node}: {reason}"
    good = diagnosis.verdict.good
    yield (
        f"{listed(good)}: fit to train" + (" together" if len(good) > 1 else "") if good else "no node is fit to train"
    )


def _findings(reports: tuple[NodeReport, ...]) -> Iterator[str]:
    """Warnings, each with all nodes that have it; errors are reasons of the verdict."""
    nodes: dict[Finding, list[str]] = {}
    for report in reports:
        for finding in report.findings:
            if finding.level is Level.WARNING:
                nodes.setdefault(finding, []).append(report.node)
    for finding, names in nodes.items():
        yield f"warning  {listed(names)}: {finding}"


def _network(fabric: Fabric, meeting: float | None) -> Iterator[str]:
    if meeting is not None:
        yield f"network  all processes had come after {meeting:.1f} s"
    known = [each for each in fabric.connections if each.speed is not None and each.latency is not None]
    if known:
        found = sorted(each.speed or 0.0 for each in known)
        latency = statistics.median(each.latency or 0.0 for each in known)
        yield (
            f"network  two by two: {_speed(statistics.median(found))} one way (lowest {_speed(found[0])}), "
            f"latency {latency * 1e6:.0f} us, {len(known)} connections"
        )
    if fabric.meeting is not None:
        yield f"network  process group of all in {fabric.meeting:.2f} s"
    for sum_ in fabric.reductions:
        speed = f", {_speed(sum_.bandwidth)} on each process" if sum_.bytes >= _MIB else ""
        yield f"network  all-reduce of {_amount(sum_.bytes)}: {sum_.seconds * 1e3:.2f} ms{speed}"
    if fabric.failure is not None:
        yield f"error    the all-reduce of all failed: {fabric.failure}"


def _speed_of_nodes(diagnosis: Diagnosis) -> dict[str, float]:
    """Of the slowest process of each node."""
    lowest: dict[str, float] = {}
    if diagnosis.fabric is not None and diagnosis.nodes is not None:
        for rank, speed in speeds(diagnosis.fabric.connections).items():
            node = diagnosis.nodes[rank]
            lowest[node] = min(speed, lowest.get(node, speed))
    return lowest


def _level(diagnosis: Diagnosis, report: NodeReport) -> Level:
    if report.node in diagnosis.verdict.bad:
        return Level.ERROR
    levels = {finding.level for finding in report.findings}
    return Level.WARNING if Level.WARNING in levels else Level.OK


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:,.1f} GiB"


def _speed(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f} GB/s"


def _amount(count: int) -> str:
    return f"{count >> 20} MiB" if count >= _MIB else f"{count >> 10} KiB"
