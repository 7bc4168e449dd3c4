"""An examination by all processes of a world together: each looks at its node, then all at the network."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import Store, TCPStore

from data_pipeline.errors import UserError
from launcher.doctor.arithmetic import check_arithmetic
from launcher.doctor.compare import Verdict, compare
from launcher.doctor.diagnosis import Diagnosis, judge_network
from launcher.doctor.fabric import measure
from launcher.doctor.findings import Finding, Level, Needs, NodeReport, merge
from launcher.doctor.node import ADVICE, ARITHMETIC, examine_node, node_name, sound
from launcher.doctor.roll import Roll
from launcher.doctor.storage import nearest_folder
from launcher.doctor.tokens import TokenError, missing_tokens, remove_token, write_token
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.processes import choose_device
from ptm_dist.training.world import World

_EXAMINATION_SECONDS = 240.0
_GOODBYE_SECONDS = 5.0


class MeetingError(UserError):
    """The processes do not reach the place where they should meet."""


@dataclass(frozen=True)
class Subject:
    """What is to be examined.

    Attributes:
        folder: run directory, or any folder that all nodes should share.
        recipe: of the run; None if no particular one.
        device: as in `launch.device`.
        patience: seconds for who does not answer.
    """

    folder: Path
    recipe: Recipe | None
    device: str
    patience: float


def examine_alone(subject: Subject) -> Diagnosis:
    """Examine this machine, with nobody else."""
    report = examine_node(subject.folder, subject.device, None, _needs(subject, None), True, subject.patience)
    report = report.with_findings(*_data(subject))
    return Diagnosis((report,), compare([report]))


def examine_together(subject: Subject, world: World) -> tuple[Diagnosis | None, bool]:
    """Examine all nodes of a world; every process calls it, and none waits for ever.

    Returns: on rank 0 the diagnosis; and on all whether all is well.

    Raises:
        MeetingError: if the processes do not find each other.
        SilenceError: if rank 0 falls silent, or goes on without this process.
    """
    began = time.monotonic()
    store = meet(world, subject.patience)
    roll = Roll(store, world.rank, world.world_size, subject.patience)
    hellos = roll.gather("hello", node_of(world))
    meeting = time.monotonic() - began
    told = roll.tell("nodes", {"nodes": hellos, "examination": secrets.token_hex(4)})
    nodes = {int(rank): name for rank, name in told["nodes"].items()}
    device = choose_device(subject.device, world.local_rank)
    examinations = _examine(roll, subject, world, nodes, told["examination"], device)
    fabric = measure(store, roll, _groups({rank: nodes[rank] for rank in roll.present}), device, subject.patience)
    diagnosis = None
    if world.rank == 0:
        reports, verdict = _first_verdict(examinations)
        diagnosis = Diagnosis(reports, judge_network(verdict, fabric, nodes, roll.lost), meeting, fabric, nodes)
    is_sound = bool(roll.tell("verdict", diagnosis is not None and diagnosis.is_sound))
    roll.leave(_GOODBYE_SECONDS)
    return diagnosis, is_sound


def meet(world: World, patience: float) -> Store:
    """The store of a world, as training finds it.

    Raises: MeetingError if it does not answer in time, or if rank 0 cannot listen there.
    """
    has_store = world.has_store or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            world.master_addr,
            world.master_port,
            world.world_size,
            is_master=world.rank == 0 and not has_store,
            wait_for_workers=False,
            timeout=timedelta(seconds=patience),
        )
    except (RuntimeError, ConnectionError, ValueError) as error:
        reason = _unresolved(world.master_addr) or str(error).splitlines()[0]
        raise MeetingError(
            f"rank {world.rank} on {node_of(world)} does not reach {world.master_addr}:{world.master_port}, where rank "
            f"0 should listen ({reason}); see whether rank 0 runs, and whether name, route and firewall lead there"
        ) from error


def _unresolved(host: str) -> str | None:
    """Says so if a name leads nowhere from here."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"nobody here knows the name {host}"
    return None


def node_of(world: World) -> str:
    """The name of this process's node: Slurm's, if the world has only that of the machine."""
    return node_name() if world.node == socket.gethostname() else world.node


def _examine(
    roll: Roll, subject: Subject, world: World, nodes: Mapping[int, str], examination: str, device: torch.device
) -> dict[int, dict[str, Any]]:
    """What all processes find on their nodes; known to the first one."""
    node, leads = nodes[world.rank], world.local_rank == 0
    report = _own_report(subject, world, node, leads, device)
    folder, missing = nearest_folder(subject.folder) if report.disk_free is not None else None, None
    try:
        if folder is not None:
            try:
                write_token(folder, node, examination)
            except TokenError as error:
                report = report.with_findings(Finding(Level.ERROR, "run directory", str(error)))
                folder = None
        wrote = roll.gather("examined", folder is not None, _EXAMINATION_SECONDS + subject.patience)
        writers = roll.tell("tokens", sorted({nodes[rank] for rank, has in wrote.items() if has}))
        if folder is not None:
            missing = sorted(missing_tokens(folder, writers, examination))
        # One moment, seen on all clocks at once.
        now = roll.tell("now", time.time())
        values = {"report": report.stamped().as_json(), "missing": missing, "received": now, "leads": leads}
        return roll.gather("report", values)
    finally:
        if folder is not None:
            remove_token(folder, node, examination)


def _own_report(subject: Subject, world: World, node: str, leads: bool, device: torch.device) -> NodeReport:
    """The first process of a node looks at all of it, the others at their devices."""
    needs, findings = Needs(), []
    if leads:
        try:
            needs, findings = _needs(subject, world.world_size), _data(subject)
        except UserError as error:
            findings.append(Finding(Level.ERROR, "recipe", str(error)))
    folder = subject.folder if leads else None
    report = examine_node(folder, subject.device, node, needs, patience=subject.patience)
    try:
        speed = check_arithmetic(device)
    except RuntimeError as error:  # wrong results, and whatever a broken device does
        computed = Finding(Level.ERROR, f"{ARITHMETIC} of {device}", str(error).splitlines()[0], ADVICE)
        return report.with_findings(computed, *findings)
    report = dataclasses.replace(report, speeds={str(device): speed})
    return report.with_findings(sound(str(device), speed), *findings)


def _needs(subject: Subject, world_size: int | None) -> Needs:
    if subject.recipe is None:
        return Needs()
    from launcher.doctor.recipe import needs

    return needs(subject.recipe, world_size)


def _data(subject: Subject) -> list[Finding]:
    if subject.recipe is None:
        return []
    from launcher.doctor.recipe import data_findings

    return data_findings(subject.recipe)


def _groups(nodes: Mapping[int, str]) -> list[list[int]]:
    """Ranks by node; one by one if there is one node only."""
    groups: dict[str, list[int]] = {}
    for rank, node in nodes.items():
        groups.setdefault(node, []).append(rank)
    return list(groups.values()) if len(groups) > 1 else [[rank] for rank in nodes]


def _first_verdict(examinations: Mapping[int, Mapping[str, Any]]) -> tuple[tuple[NodeReport, ...], Verdict]:
    """One report of each node, and what they say without the network."""
    by_node: dict[str, list[NodeReport]] = {}
    received: dict[str, float] = {}
    missing: dict[str, list[str]] = {}
    for found in sorted(examinations.values(), key=lambda found: not found["leads"]):  # a stable order
        report = NodeReport.of_json(found["report"])
        by_node.setdefault(report.node, []).append(report)
        received.setdefault(report.node, found["received"])
        if found["missing"] is not None:
            missing[report.node] = found["missing"]
    reports = tuple(merge(tuple(own)) for own in by_node.values())
    return reports, compare(reports, received, missing)
