"""Boxes of global tensors to and from disk, by torch.distributed.checkpoint.

Every rank describes what it holds as boxes of named global tensors. Saving writes each box once; loading
reads whatever saved boxes overlap the wanted ones. So a state saved at one layout loads at any other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ptm_dist.checkpoint.disk import CandidFileSystem
from ptm_dist.checkpoint.reader import PartReader, RememberingReader
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.boxes import Held, boxes_of, global_shape_of
from ptm_dist.parallel.control import ALONE, ControlGroup
from ptm_dist.parallel.shards import LocalShard

METADATA_FILE = ".metadata"


@dataclass(frozen=True)
class LazyShard(LocalShard):
    """A box to save whose values are fetched when it is written, and forgotten then.

    Attributes:
        read: gives the values; `local` only says their shape and dtype, on the meta device.
    """

    read: Callable[[], Tensor]


def save_state(state: Mapping[str, Held], directory: Path, control: ControlGroup) -> None:
    """Write boxes of all ranks into an empty directory, each box once, flushed to disk; collective.

    Args:
        state: this rank's boxes by canonical name, one or several of each tensor; a box that several ranks hold is
            written by one of them.
        directory: exists, the same on all ranks.
        control: all ranks of the run.

    Raises: the first failing rank's error, on all ranks.
    """
    # DCP keeps what it has written until the file is complete: boxes that are fetched have a file each.
    is_lazy = any(isinstance(shard, LazyShard) for held in state.values() for shard in boxes_of(held))
    writer = FileSystemWriter(directory, single_file_per_rank=not is_lazy, sync_files=True, overwrite=False)
    writer.fs = CandidFileSystem()
    _unwrapped(
        lambda: save(
            dict(state),
            storage_writer=writer,
            planner=_ShardSavePlanner(),
            process_group=control.group,
            no_dist=control.group is None,
        )
    )


def load_state(state: Mapping[str, Held], directory: Path, control: ControlGroup) -> None:
    """Fill this rank's boxes, whatever the boxes were at saving; collective.

    Raises:
        CheckpointError: if a tensor is missing or has another shape; nothing is read then.
    """
    saved = saved_shapes(directory)
    wrong = [
        f"{name}: {saved.get(name, 'missing')} in the checkpoint, {global_shape_of(held)} here"
        for name, held in state.items()
        if saved.get(name) != global_shape_of(held)
    ]
    if wrong:
        raise CheckpointError(f"{directory} is of another model; " + "; ".join(sorted(wrong)))
    _load(state, PartReader(directory), control)


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
        entries = self._reader.read_metadata().state_dict_metadata
        self.shapes = {name: tuple(e.size) for name, e in entries.items() if isinstance(e, TensorStorageMetadata)}

    def read(self, name: str) -> Tensor:
        """One of :attr:`shapes` in float32 on the CPU; a tensor of its own."""
        shape = self.shapes[name]
        box = LocalShard(torch.empty(shape, dtype=torch.float32), shape, (0,) * len(shape))
        _load({name: box}, self._reader, ALONE)
        return box.local


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


def _boxes_with_values(state: Mapping[str, Held]) -> dict[MetadataIndex, LocalShard]:
    """What is to be moved, by tensor and first index, by which DCP asks for it again."""
    boxes = [(name, shard) for name, held in state.items() for shard in boxes_of(held)]
    return {MetadataIndex(name, torch.Size(shard.offset)): shard for name, shard in boxes if shard.local.numel()}


class _ShardSavePlanner(DefaultSavePlanner):
    """Plans from LocalShard boxes; the base class removes doubles and balances them over ranks."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        self._boxes = _boxes_with_values(self.state_dict)
        self.plan = SavePlan([_write_item(index, shard) for index, shard in self._boxes.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        shard = self._boxes[index]
        return shard.read() if isinstance(shard, LazyShard) else shard.local


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
        self._boxes = _boxes_with_values(self.state_dict)
        reads = (_reads(index.fqn, shard, saved[index.fqn]) for index, shard in self._boxes.items())
        return LoadPlan([read for of_box in reads for read in of_box])

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._boxes[index].local


def _reads(name: str, shard: LocalShard, saved: STORAGE_TYPES) -> list[ReadItem]:
    assert isinstance(saved, TensorStorageMetadata)
    reads = create_read_items_for_chunk_list(name, saved, [_chunk(shard)])
    if sum(math.prod(read.lengths) for read in reads) != shard.local.numel():
        raise CheckpointError(f"the checkpoint does not hold all of {name}; use another one")
    return reads


def _chunk(shard: LocalShard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(shard.offset), sizes=shard.local.shape)


def _write_item(index: MetadataIndex, shard: LocalShard) -> WriteItem:
    return WriteItem(
        index=index,
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=_chunk(shard),
            properties=TensorProperties.create_from_tensor(shard.local),
            size=torch.Size(shard.global_shape),
        ),
    )
