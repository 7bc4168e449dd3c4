"""Which nodes may take part: each was examined, and they agree about software, clocks and the run directory."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from launcher.doctor.compare import Verdict, compare
from launcher.doctor.findings import NodeReport


class Entrance:
    """What is known of the nodes that came, and what follows from it.

    Attributes:
        bad: nodes that may not take part, and why.
        is_open: whether all that were expected have come: later ones are examined as they come.
    """

    def __init__(self) -> None:
        self._reports: dict[str, NodeReport] = {}
        self._received: dict[str, float] = {}
        self._missing: dict[str, Collection[str]] = {}
        self._asked: dict[str, float] = {}
        self.is_open = False
        self.bad: dict[str, str] = {}

    def came(self, node: str, report: Mapping[str, Any]) -> None:
        """A node was examined, and has left its token in the run directory."""
        self._reports[node] = NodeReport.of_json(report)
        self._received[node] = time.time()
        self._missing.pop(node, None)
        self._asked.pop(node, None)
        self.bad.pop(node, None)

    def went(self, node: str) -> None:
        """A node is gone; when it comes back it is examined again."""
        self._reports.pop(node, None)
        self._missing.pop(node, None)

    def ask(self, nodes: Collection[str]) -> None:
        """Nodes are being asked to look for the tokens of the others."""
        self.is_open = True
        self._asked.update(dict.fromkeys(nodes, time.monotonic()))

    def is_asked(self, node: str) -> bool:
        """Whether a node was asked since it came."""
        return node in self._asked

    def late(self, nodes: Collection[str], seconds: float) -> list[str]:
        """Those of some nodes that were asked so long ago."""
        return [node for node in nodes if time.monotonic() - self._asked.get(node, time.monotonic()) > seconds]

    def looked(self, node: str, missing: Collection[str]) -> None:
        """A node has looked for the tokens of the others, and did not see these."""
        if node in self._reports:
            self._missing[node] = missing

    def unseen(self, nodes: Collection[str]) -> list[str]:
        """Those of some nodes that have not looked yet, or were not examined."""
        return [node for node in nodes if node in self._reports and node not in self._missing]

    def exclude(self, node: str, reason: str) -> None:
        """A node is bad, whatever its report says."""
        self.bad[node] = reason

    def judge(self) -> Verdict:
        """Compare all nodes that were examined; bad ones are remembered."""
        missing = {node: self._missing.get(node, ()) for node in self._reports}
        verdict = compare(list(self._reports.values()), self._received, missing)
        self.bad.update(verdict.bad)
        return verdict
