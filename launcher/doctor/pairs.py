"""Who measures with whom, and what the measurements say: arithmetic only."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLOW = 0.5
"""Share of the usual speed below which the connections of a process are slow."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Connection:
    """What two processes measured between them.

    Attributes:
        first: rank of one.
        second: rank of the other.
        speed: bytes per second one way; None if they could not talk.
        latency: seconds one way for a few bytes; None if they could not talk.
        failure: why not; None if they could.
    """

    first: int
    second: int
    speed: float | None
    latency: float | None
    failure: str | None = None


def rounds(groups: Sequence[Sequence[int]], most: int) -> list[list[Pair]]:
    """Rounds in which every process talks to one process of another group at most; each two groups meet once.

    Groups sit around a table and move one place each round, but for the first. Their first processes talk to each
    other, their second ones, and so on, all at the same time: with a network adapter for each device, each is measured.

    Args:
        groups: ranks by node; or one rank each.
        most: rounds, however many groups there are.
    """
    seats: list[Sequence[int]] = [*groups, *([()] if len(groups) % 2 else [])]
    found = []
    for _ in range(min(most, len(seats) - 1)):
        facing = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        found.append([pair for left, right in facing for pair in zip(left, right, strict=False)])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found


def best_of(connections: Sequence[Connection]) -> list[Connection]:
    """One measurement of each two processes: the faster one, as what else a machine does can only slow it down."""
    best: dict[Pair, Connection] = {}
    for each in connections:
        pair = (each.first, each.second)
        if pair not in best or (each.speed or 0.0) > (best[pair].speed or 0.0):
            best[pair] = each
    return [best[pair] for pair in sorted(best)]


def cut_off(connections: Sequence[Connection]) -> dict[int, list[int]]:
    """Processes that explain why others could not talk: ranks, each with those that it could not talk to.

    The one in most failures first; of a single failure between two, both: nobody can tell from here.
    """
    failures = [(each.first, each.second) for each in connections if each.failure is not None]
    found: dict[int, list[int]] = {}
    while failures:
        counts = Counter(rank for pair in failures for rank in pair)
        most = max(counts.values())
        blamed = [rank for rank in sorted(counts) if counts[rank] == most]
        for rank in blamed:
            found[rank] = [sum(pair) - rank for pair in failures if rank in pair]
        failures = [pair for pair in failures if not set(pair) & set(blamed)]
    return found


def speeds(connections: Sequence[Connection]) -> dict[int, float]:
    """Bytes per second of each process: the middle one of its connections, the upper of two.

    The upper one, because a fast process that has two partners of which one is slow is not slow.
    """
    by_rank: dict[int, list[float]] = {}
    for each in connections:
        for rank in (each.first, each.second):
            if each.speed is not None:
                by_rank.setdefault(rank, []).append(each.speed)
    return {rank: statistics.median_high(by_rank[rank]) for rank in sorted(by_rank)}


def slow(speed_of: Mapping[int, float]) -> dict[int, float]:
    """Processes below the share :data:`SLOW` of the usual speed, each with its share; from three processes on.

    Args:
        speed_of: bytes per second by rank.
    """
    if len(speed_of) < 3:
        return {}
    usual = statistics.median_high(speed_of.values())
    return {rank: speed / usual for rank, speed in speed_of.items() if speed < SLOW * usual}
