"""The way back from snapshots: which one the living nodes still have all of, and its boxes to where they are wanted.

Nothing is assumed of the ranks that took it: there may be more or fewer of them now, on other nodes, at another layout.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.checkpoint.store import Description
from ptm_dist.keeper.snapshots import SnapshotBox, SnapshotHeader, damaged_boxes, mapped, read_headers
from ptm_dist.parallel.boxes import Held, boxes_of
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.parallel.shards import LocalShard

_Key: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name, offset and shape of a box: what its copies have in common."""
_Wanted: TypeAlias = dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]
"""Offset and shape of the boxes that a rank wants of each tensor."""


@dataclass(frozen=True)
class Copy:
    """A box of a snapshot on a node.

    Attributes:
        node: name of the node.
        file: in its folder.
        box: which one, and where it lies.
    """

    node: str
    file: str
    box: SnapshotBox


@dataclass(frozen=True)
class Snapshot:
    """A state of which the living nodes have every box.

    Attributes:
        description: of it.
        copies: of each box, sound ones.
        nodes: of all ranks.
    """

    description: Description
    copies: dict[_Key, list[Copy]]
    nodes: list[str]


def newest_snapshot(
    folder: Path,
    node: str,
    control: ControlGroup,
    is_wanted: Callable[[Description], bool],
    on_damage: Callable[[str], None],
) -> Snapshot | None:
    """The snapshot of the highest step that is complete and sound; None if there is none; collective.

    Args:
        folder: of the run on this node.
        node: name of this machine.
        control: all ranks.
        is_wanted: says whether the run goes on from a state.
        on_damage: told what is wrong with a copy, on all ranks.
    """
    nodes = control.gather(node)
    is_speaker = nodes.index(node) == control.rank
    own = list(read_headers(folder)) if is_speaker else []
    sets: dict[tuple[int, str], list[tuple[str, SnapshotHeader]]] = defaultdict(list)
    for name, headers in zip(nodes, control.gather(own), strict=True):
        for header in headers:
            sets[header.step, header.life].append((name, header))
    for (_, _), found in sorted(sets.items(), key=lambda each: each[0], reverse=True):
        description = Description.model_validate_json(found[0][1].description)
        if not is_wanted(description) or not _is_complete(_copies(found, set()), found[0][1].total):
            continue
        bad = _damaged(folder, node, nodes, control, [header for name, header in found if name == node])
        for name, file, box in sorted(bad):
            on_damage(f"{box} in snapshot {file} on {name} is damaged")
        copies = _copies(found, bad)
        if _is_complete(copies, found[0][1].total):
            return Snapshot(description, copies, nodes)
    return None


def load_snapshot(snapshot: Snapshot, state: Mapping[str, Held], folder: Path, control: ControlGroup) -> None:
    """Fill this rank's boxes; collective. A part of one box is on its way at a time.

    Args:
        snapshot: what :func:`newest_snapshot` gave.
        state: boxes at whatever layout.
        folder: of the run on this node.
        control: all ranks.
    """
    own = [(name, shard) for name, held in state.items() for shard in boxes_of(held) if shard.local.numel()]
    wanted: _Wanted = defaultdict(list)
    for name, shard in own:
        wanted[name].append((shard.offset, tuple(shard.local.shape)))
    exchange = _Exchange(snapshot, control.gather(dict(wanted)), folder, control)
    targets = {(name, shard.offset, tuple(shard.local.shape)): shard for name, shard in own}
    for key in sorted(snapshot.copies):
        exchange.move(key, targets)


class _Exchange:
    """Moves boxes between ranks, in an order that all agree upon: whoever waits is waited for by nobody."""

    def __init__(self, snapshot: Snapshot, wanted: list[_Wanted], folder: Path, control: ControlGroup) -> None:
        self._snapshot = snapshot
        self._nodes = snapshot.nodes
        self._wanted = wanted
        self._folder = folder
        self._control = control
        self._files: dict[str, memoryview] = {}

    def move(self, key: _Key, targets: Mapping[_Key, LocalShard]) -> None:
        """Bring one saved box to all ranks that want some of it."""
        name, offset, shape = key
        copies = self._snapshot.copies[key]
        holders = {copy.node for copy in copies}
        source = self._source(copies)
        # Of what others want, a rank looks at what it sends: else all would look at everything.
        ranks = range(self._control.size) if source == self._control.rank else (self._control.rank,)
        for rank in ranks:
            for want in self._wanted[rank].get(name, ()):
                common = _overlap((offset, shape), want)
                if common is None:
                    continue
                is_here = self._nodes[rank] in holders
                if rank == self._control.rank:
                    target = _part(targets[(name, *want)].local, want[0], common)
                    target.copy_(self._read(copies, common) if is_here else self._receive(target, source, copies[0]))
                elif not is_here:
                    self._send(self._read(copies, common), rank)

    def _source(self, copies: list[Copy]) -> int:
        """The rank that sends a box to nodes that have none: of a node that has it, not always the same one."""
        box = copies[0].box
        ranks = [rank for rank, node in enumerate(self._nodes) if node == copies[0].node]
        return ranks[(box.begin // 64) % len(ranks)]

    def _read(self, copies: list[Copy], common: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
        node = self._nodes[self._control.rank]
        copy = next(copy for copy in copies if copy.node == node)
        if copy.file not in self._files:
            self._files[copy.file] = mapped(self._folder / copy.file)
        box = copy.box
        whole = torch.frombuffer(
            self._files[copy.file], dtype=getattr(torch, box.dtype), offset=box.begin, count=math.prod(box.shape)
        ).view(box.shape)
        return _part(whole, box.offset, common)

    def _receive(self, like: Tensor, source: int, copy: Copy) -> Tensor:
        values = torch.empty(like.shape, dtype=getattr(torch, copy.box.dtype))
        dist.recv(values, source, group=self._control.group)
        return values

    def _send(self, values: Tensor, rank: int) -> None:
        dist.send(values.contiguous(), rank, group=self._control.group)


def _copies(found: list[tuple[str, SnapshotHeader]], bad: set[tuple[str, str, str]]) -> dict[_Key, list[Copy]]:
    copies: dict[_Key, list[Copy]] = defaultdict(list)
    for node, header in found:
        for box in header.boxes:
            if (node, header.file, _label(box)) not in bad:
                copies[box.name, box.offset, box.shape].append(Copy(node, header.file, box))
    return dict(copies)


def _is_complete(copies: dict[_Key, list[Copy]], total: int) -> bool:
    return sum(same[0].box.size for same in copies.values()) == total


def _damaged(
    folder: Path, node: str, nodes: list[str], control: ControlGroup, headers: list[SnapshotHeader]
) -> set[tuple[str, str, str]]:
    """Node, file and label of all boxes that are not as they were copied; the ranks of a node share its files."""
    ranks = [rank for rank, name in enumerate(nodes) if name == node]
    mine = sorted(headers, key=lambda header: header.file)[ranks.index(control.rank) :: len(ranks)]
    bad = [(node, header.file, _label(box)) for header in mine for box in damaged_boxes(folder, header)]
    return {one for part in control.gather(bad) for one in part}


def _label(box: SnapshotBox) -> str:
    return f"{box.name} at {list(box.offset)}"


def _overlap(
    a: tuple[tuple[int, ...], tuple[int, ...]], b: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """First index and shape of what two boxes have in common."""
    begins = tuple(map(max, a[0], b[0]))
    ends = tuple(min(x + n, y + m) for x, n, y, m in zip(*a, *b, strict=True))
    shape = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return (begins, shape) if all(size > 0 for size in shape) else None


def _part(values: Tensor, offset: tuple[int, ...], part: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    """The part of a box that begins at `offset`, a view."""
    ranges = zip(offset, *part, strict=True)
    return values[tuple(slice(begin - first, begin - first + size) for first, begin, size in ranges)]
