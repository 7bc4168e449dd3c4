"""Which nodes may take part: each was examined, and they agree about software, clocks and the run directory."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from launcher.doctor.compare import Verdict, compare
from launcher.doctor.findings import NodeReport


class Entrance:
    """What is known of the nodes that came, and what follows from it."""

    def __init__(self) -> None:
        self._reports: dict[str, NodeReport] = {}
        self._received: dict[str, float] = {}
        self._missing: dict[str, Collection[str]] = {}
        self.bad: dict[str, str] = {}

    def came(self, node: str, report: Mapping[str, Any]) -> None:
        """A node was examined, and has left its token in the run directory."""
        self._reports[node] = NodeReport.of_json(report)
        self._received[node] = time.time()
        self._missing.pop(node, None)
        self.bad.pop(node, None)

    def went(self, node: str) -> None:
        """A node is gone; when it comes back it is examined again."""
        self._reports.pop(node, None)
        self._missing.pop(node, None)

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
