"""The nodes of a run, as the coordinator knows them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from launcher.elastic.wire import Wire


@dataclass
class Member:
    """A node whose agent has been let in.

    Attributes:
        node: its name.
        processes: workers that it can run.
        wire: to its agent.
        heard: when it said something last (monotonic).
        device_memory: bytes of the device of each process; None if unknown.
    """

    node: str
    processes: int
    wire: Wire
    heard: float = field(default_factory=time.monotonic)
    device_memory: int | None = None


class Members:
    """All of them, in the order of ranks.

    Those of a round are in the order of their names, in which neighbours are close to each other; newcomers stand
    behind them, and one that comes back has its old place: who stays keeps its part of the state in memory.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._members: dict[str, Member] = {}
        self._returning: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._members)

    def all(self) -> list[Member]:
        """In rank order."""
        last = len(self._places)
        return sorted(
            self._members.values(), key=lambda member: (self._places.get(member.node, last), _natural(member.node))
        )

    def seat(self) -> None:
        """A round begins: from now on all that are here have their places."""
        for member in self.all():
            self._places.setdefault(member.node, len(self._places))

    def find(self, node: str) -> Member | None:
        """A node by its name."""
        return self._members.get(node)

    def add(self, member: Member) -> None:
        """Let a node in."""
        self._members[member.node] = member
        self._returning.pop(member.node, None)

    def remove(self, member: Member) -> None:
        """A node is gone, for now."""
        member.wire.close()
        if self._members.get(member.node) is member:
            del self._members[member.node]

    def expect(self, node: str, seconds: float) -> None:
        """A node that went has said that it comes back."""
        self._returning[node] = time.monotonic() + seconds

    def is_one_returning(self) -> bool:
        """Whether somebody is still expected."""
        return any(deadline > time.monotonic() for deadline in self._returning.values())

    @property
    def processes(self) -> int:
        """Workers that all nodes together can run."""
        return sum(member.processes for member in self._members.values())

    @property
    def device_memory(self) -> int | None:
        """Of the smallest device; None if unknown."""
        known = [member.device_memory for member in self._members.values() if member.device_memory is not None]
        return min(known, default=None)


def _natural(name: str) -> list[tuple[int, str]]:
    """A name as people sort it: n2 before n10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
