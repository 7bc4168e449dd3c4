"""Snapshots of the state in the memory of the nodes, between checkpoints: what a restart goes on from at once.

Each box is copied by one rank, to a file of its node's memory disk, and from there to a node beside it. There are two
files in turn, of which one is complete at any moment; copies go on beside the steps as checkpoints do. See
:mod:`ptm_dist.checkpoint.recovery` for the way back.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ptm_dist.checkpoint.keepers import KeeperProcess
from ptm_dist.checkpoint.plan import RankPlan, boxes_with_values
from ptm_dist.checkpoint.staging import HostBuffer, places_of
from ptm_dist.checkpoint.store import CheckpointStore, Description
from ptm_dist.errors import CheckpointError
from ptm_dist.keeper.messages import Keep, Kept, Listen, Listening
from ptm_dist.keeper.peers import Peer
from ptm_dist.keeper.snapshots import SnapshotBox, SnapshotHeader, begin
from ptm_dist.parallel.boxes import Held
from ptm_dist.parallel.control import ControlGroup

SLOTS = 2


@dataclass(frozen=True)
class MemoryPlace:
    """Where a rank's snapshots are.

    Attributes:
        folder: of the run on this node, on a memory disk.
        node: name of this machine.
        host: name by which the other nodes reach it.
    """

    folder: Path
    node: str
    host: str


def snapshot_folder(memory_dir: Path, run_directory: Path, node: str) -> Path:
    """The folder of a run's snapshots on a node."""
    name = hashlib.sha256(str(run_directory.resolve()).encode()).hexdigest()[:16]
    return memory_dir / f"ptm-{name}" / node


def remove_snapshots(folder: Path) -> None:
    """Give back the memory of a node's snapshots."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def own_address(meeting_place: str) -> str:
    """Name by which other nodes reach this one.

    Args:
        meeting_place: where all ranks meet; a node that hosts it is reached by that name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((meeting_place, 9))  # sends nothing: it only chooses the way
        except OSError:
            return meeting_place
        address: str = probe.getsockname()[0]
    return meeting_place if address.startswith("127.") else address


def peer_of(rank: int, nodes: list[str]) -> int | None:
    """Which rank keeps a second copy of a rank's snapshots: one of the next node; None if there is only one node.

    Args:
        rank: that has the first copy.
        nodes: of all ranks, by name.
    """
    names = list(dict.fromkeys(nodes))
    if len(names) == 1:
        return None
    ranks = {name: [rank for rank, node in enumerate(nodes) if node == name] for name in names}
    others = ranks[names[(names.index(nodes[rank]) + 1) % len(names)]]
    return others[ranks[nodes[rank]].index(rank) % len(others)]


@dataclass
class _Prepared:
    """What the snapshots of a life share."""

    plan: RankPlan
    boxes: tuple[SnapshotBox, ...]
    total: int
    life: str
    buffers: tuple[HostBuffer, ...]
    keeper: KeeperProcess
    peer: Peer | None
    taken: int = 0
    is_busy: bool = False


class MemorySnapshots:
    """Takes snapshots; all methods but :meth:`close` are collective.

    Args:
        store: of the run, which knows who copies which box.
        control: all ranks.
        device: that holds the state.
        place: of this rank.
    """

    def __init__(self, store: CheckpointStore, control: ControlGroup, device: torch.device, place: MemoryPlace) -> None:
        self._store = store
        self._control = control
        self._device = device
        self._place = place
        self._prepared: _Prepared | None = None
        self._problem: str | None = None
        self.problems: list[str] = []
        """Why copies of the snapshot before are on one node only, in words; the same on all ranks."""

    def prepare(self, state: Mapping[str, Held]) -> None:
        """Make files, start the process, and tell the others where it listens.

        Raises: CheckpointError if the memory disk cannot be used, on all ranks.
        """
        boxes = boxes_with_values(state)
        plan = self._store.plan(boxes)
        begins, size = places_of([box.size for box in plan.boxes])
        kept = tuple(
            SnapshotBox(
                name=box.index.fqn,
                offset=tuple(boxes[box.index].offset),
                shape=tuple(boxes[box.index].local.shape),
                global_shape=boxes[box.index].global_shape,
                dtype=str(boxes[box.index].local.dtype).removeprefix("torch."),
                begin=first,
                size=box.size,
            )
            for box, first in zip(plan.boxes, begins, strict=True)
        )
        (total,) = self._control.sums(float(sum(box.size for box in kept)))
        life, secret = self._control.from_first(lambda: (uuid.uuid4().hex[:8], secrets.token_hex(16)))
        buffers = self._control.together(lambda: self._files(life, size))
        keeper = KeeperProcess([buffer.descriptor for buffer in buffers])
        buffers[0].reserve()
        self._prepared = _Prepared(plan, kept, int(total), life, buffers, keeper, None)
        self._prepared.peer = self._meet(keeper, secret)

    def take(self, state: Mapping[str, Held], description: Description) -> bool:
        """Copy the state, and have it kept here and at the peer; on return it may change.

        Returns: False if a rank is still at the snapshot before, and so nothing was done.
        Raises: CheckpointError if there is no memory, or the process is gone, on all ranks.
        """
        prepared = self._control.together(self._look)
        is_busy, has_problem = self._control.maxima(float(prepared.is_busy), float(self._problem is not None))
        self.problems = [text for text in self._control.gather(self._problem) if text] if has_problem else []
        if is_busy:
            return False
        if prepared.taken == 1:
            self._forget_earlier_lives(prepared.life)
        slot = prepared.taken % SLOTS
        self._control.together(lambda: self._fill(prepared, slot, state))
        header = SnapshotHeader(
            file=self._file(prepared.life, slot),
            life=prepared.life,
            step=description.step,
            total=prepared.total,
            description=description.model_dump_json(),
            boxes=prepared.boxes,
        )
        prepared.keeper.send(Keep(slot, str(self._place.folder), header, prepared.peer))
        prepared.taken, prepared.is_busy = prepared.taken + 1, True
        return True

    def close(self) -> None:
        """End the process; the snapshots stay."""
        if self._prepared is not None:
            self._prepared.keeper.close()
            for buffer in self._prepared.buffers:
                buffer.close()
        self._prepared = None

    def _files(self, life: str, size: int) -> tuple[HostBuffer, ...]:
        folder = self._place.folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths = [folder / self._file(life, slot) for slot in range(SLOTS)]
            return tuple(HostBuffer(max(size, 1), self._device, path) for path in paths)
        except OSError as error:
            raise _no_memory(folder, size, error) from error

    def _file(self, life: str, slot: int) -> str:
        return f"{life}-{self._control.rank}-{slot}"

    def _meet(self, keeper: KeeperProcess, secret: str) -> Peer | None:
        nodes = self._control.gather(self._place.node)
        number = peer_of(self._control.rank, nodes)
        if len(set(nodes)) == 1:
            return None

        def listen() -> int:
            keeper.send(Listen(str(self._place.folder), secret))
            answer = keeper.answer()
            assert isinstance(answer, Listening)
            return answer.port

        listening = self._control.gather((self._place.host, self._control.together(listen)))
        return None if number is None else Peer(*listening[number], secret)

    def _look(self) -> _Prepared:
        """Take note of what the process has done meanwhile."""
        prepared = self._prepared
        assert prepared is not None
        if prepared.is_busy and prepared.keeper.has_answer():
            answer = prepared.keeper.answer()
            assert isinstance(answer, Kept)
            self._problem, prepared.is_busy = answer.problem, False
        return prepared

    def _fill(self, prepared: _Prepared, slot: int, state: Mapping[str, Held]) -> None:
        begin(self._place.folder, self._file(prepared.life, slot))
        boxes = boxes_with_values(state)
        places = zip(prepared.boxes, prepared.plan.boxes, strict=True)
        try:
            prepared.buffers[slot].fill((kept.begin, boxes[planned.index].local) for kept, planned in places)
        except OSError as error:
            raise _no_memory(self._place.folder, prepared.buffers[slot].size, error) from error

    def _forget_earlier_lives(self, life: str) -> None:
        """All ranks have a snapshot of this one."""
        for path in self._place.folder.iterdir():
            if not path.name.startswith((life, ".")):
                path.unlink(missing_ok=True)


def _no_memory(folder: Path, size: int, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"no memory for snapshots in {folder} ({SLOTS * size / 1024**3:.1f} GiB for this rank, {error}); name another "
        "memory disk with checkpoint.memory_dir, or keep none with checkpoint.memory_every=0"
    )
