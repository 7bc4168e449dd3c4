"""One round: the same ranks on the same nodes, from their start to the end of the last of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.elastic.hangs import Beat
from launcher.failures import Failure, Kind

_GRACE_SECONDS = 5.0
_GRACE_AFTER_CAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Seat:
    """The ranks of one node."""

    node: str
    ranks: range


@dataclass
class Round:
    """What is known of a round.

    Attributes:
        number: from 0, in one life of the coordinator.
        seats: which node computes which ranks.
        layout: in words.
        store: where ranks meet; lives as long as the round.
        ended: ranks that ended, with their failures (None: ended well).
        beats: what ranks said last.
        best_step: most steps that any rank has done.
        began_at: steps that were done when its ranks began to compute; -1: they never did.
        outcome: how the run stands, as rank 0 said at its end.
        deadline: when what is left of a broken round is killed (monotonic); None while nothing is broken.
        is_killed: whether that was done.
        leaves: whether it was asked to make way for another world.
        stacks: by rank, asked for when the round hangs.
        stacks_due: when to look at them; None: they were not asked for.
        culprit: who was found to hold the others up.
    """

    number: int
    seats: Sequence[Seat]
    layout: str
    store: Any
    ended: dict[int, Failure | None] = field(default_factory=dict)
    beats: dict[int, Beat] = field(default_factory=dict)
    best_step: int = 0
    began_at: int = -1
    outcome: dict[str, Any] | None = None
    deadline: float | None = None
    is_killed: bool = False
    leaves: bool = False
    stacks: dict[int, str] = field(default_factory=dict)
    stacks_due: float | None = None
    culprit: Failure | None = None

    @property
    def world_size(self) -> int:
        """Ranks of the round."""
        return sum(len(seat.ranks) for seat in self.seats)

    @property
    def nodes(self) -> list[str]:
        """That take part, in rank order."""
        return [seat.node for seat in self.seats]

    @property
    def is_over(self) -> bool:
        """Whether every rank has ended."""
        return len(self.ended) == self.world_size

    @property
    def failures(self) -> list[Failure]:
        """Of the ranks that ended otherwise than well."""
        return [failure for failure in self.ended.values() if failure is not None]

    def node_of(self, rank: int) -> str:
        """The node that computes a rank."""
        return next(seat.node for seat in self.seats if rank in seat.ranks)

    def ranks_of(self, node: str) -> range:
        """The ranks of a node; none if it takes no part."""
        return next((seat.ranks for seat in self.seats if seat.node == node), range(0))

    def take_beats(self, beats: Mapping[str, Sequence[Any]]) -> None:
        """What the ranks of a node said last."""
        for rank, values in beats.items():
            beat = Beat.from_list(values)
            self.beats[int(rank)] = beat
            self.best_step = max(self.best_step, beat.step)

    def end_rank(self, rank: int, failure: Failure | None) -> None:
        """A rank has ended; the others are given some time to fail of that by themselves, and to say how."""
        self.ended.setdefault(rank, failure)
        self.beats.pop(rank, None)
        if failure is not None:
            known = failure.kind is not Kind.COLLATERAL
            self.hurry(_GRACE_AFTER_CAUSE_SECONDS if known else _GRACE_SECONDS)

    def lose_node(self, node: str, why: str) -> None:
        """A node is gone with its ranks: whatever the others say from now on is its fault."""
        ranks = self.ranks_of(node)
        message = f"node {node} was lost: {why}"
        for rank in ranks:
            beat = self.beats.get(rank)
            place = beat.describe() if beat is not None else ""
            self.end_rank(rank, Failure(rank, time.time(), Kind.ERROR, message, node=node, place=place))
        if ranks:
            self.hurry(0.0)

    def hurry(self, seconds: float) -> None:
        """Kill what is left after some seconds, unless that is to happen earlier already."""
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def cause(self) -> Failure:
        """The first failure that is not the consequence of another one; of consequences alone the first."""
        if self.culprit is not None:
            return self.culprit
        causes = [failure for failure in self.failures if failure.kind is not Kind.COLLATERAL]
        return min(causes or self.failures, key=lambda failure: failure.time)
