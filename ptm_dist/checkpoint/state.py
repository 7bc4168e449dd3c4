"""Boxes of global tensors to and from disk, in files of torch.distributed.checkpoint.

Every rank describes what it holds as boxes of named global tensors. Saving writes each box once; loading
reads whatever saved boxes overlap the wanted ones. So a state saved at one layout loads at any other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load

from ptm_dist.checkpoint.plan import LazyShard, RankPlan, boxes_with_values, chunk_of, plan_save
from ptm_dist.checkpoint.reader import RememberingReader
from ptm_dist.errors import CheckpointError
from ptm_dist.keeper.archive import DataFile
from ptm_dist.parallel.boxes import Held, global_shape_of
from ptm_dist.parallel.control import ALONE, ControlGroup
from ptm_dist.parallel.shards import LocalShard

METADATA_FILE = ".metadata"

Files: TypeAlias = dict[str, tuple[int, str]]
"""Bytes, and xxh3-128 of them in hex, of files by name."""


def save_state(state: Mapping[str, Held], directory: Path, control: ControlGroup) -> None:
    """Write boxes of all ranks into an empty directory, each box once, flushed to disk; collective.

    Args:
        state: this rank's boxes by canonical name, one or several of each tensor; a box that several ranks hold is
            written by one of them.
        directory: exists, the same on all ranks.
        control: all ranks of the run.

    Raises: this rank's own error, or PeerError where another one failed.
    """
    boxes = boxes_with_values(state)
    plan = plan_save(boxes, control)
    control.together(lambda: write_boxes(plan, boxes, directory))


def write_boxes(plan: RankPlan, boxes: Mapping[MetadataIndex, LocalShard], directory: Path) -> Files:
    """Write this rank's files, flushed to disk; a box that is not on the CPU, or lazy, is fetched and forgotten.

    Returns: bytes and xxh3-128 by name.
    """
    written = {}
    if plan.boxes:
        with DataFile(directory / plan.file) as file:
            for planned in plan.boxes:
                box = boxes[planned.index]
                file.add(planned.pickled, bytes_of(box.read() if isinstance(box, LazyShard) else box.local))
        written[plan.file] = (file.size, file.xxh3)
    if plan.metadata is not None:
        with DataFile(directory / METADATA_FILE) as file:
            file.write(plan.metadata)
        written[METADATA_FILE] = (file.size, file.xxh3)
    return written


def bytes_of(values: Tensor) -> memoryview:
    """The values of a tensor in the order of memory; copied only if they are on a device, or do not lie so."""
    on_host = values.detach().cpu().contiguous()
    content: memoryview = on_host.reshape(-1).view(torch.uint8).numpy().data
    return content


def load_state(state: Mapping[str, Held], directory: Path, control: ControlGroup) -> None:
    """Fill this rank's boxes, whatever the boxes were at saving; collective.

    Raises:
        CheckpointError: if a tensor is missing or has another shape; nothing is read then.
    """
    reader = RememberingReader(directory)
    saved = _shapes(reader)
    wrong = [
        f"{name}: {saved.get(name, 'missing')} in the checkpoint, {global_shape_of(held)} here"
        for name, held in state.items()
        if saved.get(name) != global_shape_of(held)
    ]
    if wrong:
        raise CheckpointError(f"{directory} is of another model; " + "; ".join(sorted(wrong)))
    _load(state, reader, control)


def saved_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Canonical names and global shapes of the tensors in a checkpoint."""
    return SavedState(directory).shapes


class SavedState:
    """The tensors of a checkpoint, read whole and one by one in a process that is alone.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._reader = RememberingReader(directory)
        self.shapes = _shapes(self._reader)

    def read(self, name: str) -> Tensor:
        """One of :attr:`shapes` in float32 on the CPU; a tensor of its own."""
        shape = self.shapes[name]
        box = LocalShard(torch.empty(shape, dtype=torch.float32), shape, (0,) * len(shape))
        _load({name: box}, self._reader, ALONE)
        return box.local


def _shapes(reader: RememberingReader) -> dict[str, tuple[int, ...]]:
    entries = reader.read_metadata().state_dict_metadata
    return {name: tuple(e.size) for name, e in entries.items() if isinstance(e, TensorStorageMetadata)}


def _load(state: Mapping[str, Held], reader: FileSystemReader, control: ControlGroup) -> None:
    _unwrapped(
        lambda: load(
            dict(state),
            storage_reader=reader,
            planner=_ShardLoadPlanner(),
            process_group=control.group,
            no_dist=control.group is None,
        )
    )


def _unwrapped(action: Callable[[], object]) -> None:
    """Run `action`; of the exceptions that DCP gathers from all ranks, raise the first one."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process that is alone
            action()
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        cause.add_note(f"on rank {rank}")
        raise cause from None


class _ShardLoadPlanner(DefaultLoadPlanner):
    """Plans reads that fill LocalShard boxes from whatever boxes were saved."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # Not the base class's: it makes something else of values that are not tensors.
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        self._boxes = boxes_with_values(self.state_dict)
        reads = (_reads(index.fqn, shard, saved[index.fqn]) for index, shard in self._boxes.items())
        return LoadPlan([read for of_box in reads for read in of_box])

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._boxes[index].local


def _reads(name: str, shard: LocalShard, saved: STORAGE_TYPES) -> list[ReadItem]:
    assert isinstance(saved, TensorStorageMetadata)
    reads = create_read_items_for_chunk_list(name, saved, [chunk_of(shard)])
    if sum(math.prod(read.lengths) for read in reads) != shard.local.numel():
        raise CheckpointError(f"the checkpoint does not hold all of {name}; use another one")
    return reads
