"""Which rectangles of the attention matrix a pair of ranks has to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ptm_dist.kernels.seen import Seen
from ptm_dist.models.attention import Sight
from ptm_dist.parallel.zigzag import places

Chunks = Sequence[range]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the attention matrix: some of this rank's queries, some keys of one rank.

    Attributes:
        queries: range of this rank's positions.
        keys: range of the other rank's positions.
        seen: makes what is known of who sees whom.
    """

    queries: slice
    keys: slice
    seen: Callable[[], Seen]


def tiles(sight: Sight, queries: Chunks, keys: Chunks, device: torch.device) -> list[Tile]:
    """Rectangles that hold all pairs of two ranks' positions that see each other, and few others.

    Args:
        sight: who sees whom.
        queries: positions of the rank that has the queries.
        keys: positions of the rank that has the keys.
        device: of masks.
    """
    plain = sight.causal and not sight.band and sight.documents is None and sight.valid is None
    if plain and queries == keys:
        return [Tile(_local(queries, slice(0, 2)), _local(keys, slice(0, 2)), lambda: Seen(causal=True))]
    front, back = (_reach(sight, chunk, keys) for chunk in queries)
    rows = [(slice(0, 2), front)] if front == back else [(slice(0, 1), front), (slice(1, 2), back)]
    return [_tile(sight, queries, keys, row, column, device) for row, column in rows if column is not None]


def _reach(sight: Sight, queries: range, keys: Chunks) -> slice | None:
    """Which of two chunks of keys a chunk of queries may see something of; None: neither."""
    near = [index for index, chunk in enumerate(keys) if _may_see(sight, queries, chunk)]
    return slice(near[0], near[-1] + 1) if near else None


def _may_see(sight: Sight, queries: range, keys: range) -> bool:
    """Whether order and distance leave a pair of these positions that sees each other."""
    if not queries or not keys:
        return False
    longest, shortest = queries[-1] - keys[0], queries[0] - keys[-1]
    return not sight.causal or (longest >= 0 and (not sight.band or shortest < sight.band))


def _sees_all(sight: Sight, queries: range, keys: range) -> bool:
    """Whether each of these queries sees each of these keys, as far as order and distance tell."""
    if sight.documents is not None or sight.valid is not None:
        return False
    if not queries or not keys or not sight.causal:
        return True
    longest, shortest = queries[-1] - keys[0], queries[0] - keys[-1]
    return shortest >= 0 and (not sight.band or longest < sight.band)


def _tile(sight: Sight, queries: Chunks, keys: Chunks, row: slice, column: slice, device: torch.device) -> Tile:
    """The rectangle of some chunks of queries and some of keys."""
    free = all(_sees_all(sight, some, others) for some in queries[row] for others in keys[column])

    def seen() -> Seen:
        return Seen() if free else Seen(sight.mask(places(queries[row], device), places(keys[column], device)))

    return Tile(_local(queries, row), _local(keys, column), seen)


def _local(chunks: Chunks, chosen: slice) -> slice:
    """Where a rank keeps the positions of chosen chunks among all of its own."""
    start = sum(len(chunk) for chunk in chunks[: chosen.start])
    return slice(start, start + sum(len(chunk) for chunk in chunks[chosen]))
