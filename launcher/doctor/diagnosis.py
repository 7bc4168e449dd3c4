"""All that is known after an examination, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.doctor.compare import Verdict, listed
from launcher.doctor.findings import NodeReport
from launcher.doctor.pairs import SLOW, cut_off, slow, speeds

if TYPE_CHECKING:
    from launcher.doctor.fabric import Fabric

# Sockets are served by the CPU: whatever else it does shows in their speed, and is no fault of the network.
_BAD_SHARES = {"cuda": SLOW, "cpu": SLOW / 2}
_DOING = {
    "hello": "did not come",
    "examined": "did not answer during its examination",
    "report": "did not answer after its examination",
    "round": "did not answer while it exchanged messages with another one",
    "reduced": "did not answer while all summed",
}


@dataclass(frozen=True)
class Diagnosis:
    """Of all nodes of an examination.

    Attributes:
        reports: of the nodes that could be examined.
        verdict: which of them are fit.
        meeting: seconds until the last process had come; None for a process alone.
        fabric: the network between processes; None if there is one only.
        nodes: node of each rank.
    """

    reports: tuple[NodeReport, ...]
    verdict: Verdict
    meeting: float | None = None
    fabric: Fabric | None = None
    nodes: Mapping[int, str] | None = None

    @property
    def is_sound(self) -> bool:
        """Whether all nodes can train together."""
        return not self.verdict.bad and (self.fabric is None or self.fabric.failure is None)


def judge_network(verdict: Verdict, fabric: Fabric, nodes: Mapping[int, str], lost: Mapping[int, str]) -> Verdict:
    """Add what the network says of the nodes.

    Args:
        verdict: so far.
        fabric: as measured.
        nodes: node of each rank that came.
        lost: ranks that did not answer, each with the call of the roll that it missed.
    """
    for rank, call in sorted(lost.items()):
        doing = next(text for start, text in _DOING.items() if call.startswith(start))
        verdict = verdict.without({nodes.get(rank, f"rank {rank}"): f"rank {rank} {doing}"})
    for rank, others in cut_off(fabric.connections).items():
        partners = listed([f"rank {other} on {nodes[other]}" for other in others])
        verdict = verdict.without({nodes[rank]: f"rank {rank} cannot exchange messages with {partners}"})
    for rank, share in slow(speeds(fabric.connections)).items():
        reason = f"the connections of rank {rank} have {share:.0%} of the usual speed"
        if share < _BAD_SHARES[fabric.device]:
            verdict = verdict.without({nodes[rank]: reason})
        else:
            verdict = verdict.without({}, [f"{nodes[rank]}: {reason}"])
    return verdict
