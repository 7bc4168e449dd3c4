"""Who writes which box where: what torch.distributed.checkpoint works out anew for each save, worked out once.

It depends on the boxes alone, and so do the lengths of all that is written. Once it is known, a rank writes its file
without a word to the others, and the first rank knows what lies in all files before they are written.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from ptm_dist.keeper.archive import archive_length
from ptm_dist.parallel.boxes import Held, boxes_of
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.parallel.shards import LocalShard

WRITTEN_AS = "1.0.0"
"""Version of DCP's metadata that the files are of; torch reads it as long as it has DCP."""

Boxes: TypeAlias = tuple[tuple[MetadataIndex, tuple[int, ...], tuple[int, ...], torch.dtype], ...]
"""All that a plan depends on: of each box its place, its shape, its tensor's shape, and its number format."""


@dataclass(frozen=True)
class LazyShard(LocalShard):
    """A box to save whose values are fetched when it is written, and forgotten then.

    Attributes:
        read: gives the values; `local` only says their shape and dtype, on the meta device.
    """

    read: Callable[[], Tensor]


@dataclass(frozen=True)
class PlannedBox:
    """A box that a rank writes.

    Attributes:
        index: its tensor and first index.
        pickled: how it is made of its values.
        size: of these, in bytes.
    """

    index: MetadataIndex
    pickled: bytes
    size: int


@dataclass(frozen=True)
class RankPlan:
    """What one rank writes.

    Attributes:
        file: name of its data file.
        boxes: in it, in this order; none means that there is no file.
        metadata: content of DCP's own file; None on all ranks but the first.
    """

    file: str
    boxes: tuple[PlannedBox, ...]
    metadata: bytes | None


def boxes_with_values(state: Mapping[str, Held]) -> dict[MetadataIndex, LocalShard]:
    """What is to be moved, by tensor and first index, by which DCP asks for it again."""
    boxes = [(name, shard) for name, held in state.items() for shard in boxes_of(held)]
    return {MetadataIndex(name, torch.Size(shard.offset)): shard for name, shard in boxes if shard.local.numel()}


def described(boxes: Mapping[MetadataIndex, LocalShard]) -> Boxes:
    """What a plan for these boxes depends on."""
    return tuple((index, tuple(box.local.shape), box.global_shape, box.local.dtype) for index, box in boxes.items())


def plan_save(boxes: Mapping[MetadataIndex, LocalShard], control: ControlGroup) -> RankPlan:
    """Share the boxes of all ranks between them, each box once, as evenly as can be; collective.

    Args:
        boxes: of this rank.
        control: all ranks.

    Raises: ValueError if the boxes of a tensor overlap, or leave some of it out, on all ranks.
    """
    items = control.to_first([_write_item(index, box) for index, box in boxes.items()])
    return control.each_from_first(lambda: _shared(items))


def _shared(items: list[list[WriteItem]]) -> list[RankPlan]:
    """The plan of each rank."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    plans, metadata = planner.create_global_plan([SavePlan(own) for own in items])
    shares = [RankPlan(f"__{rank}_0.distcp", _planned(plan), None) for rank, plan in enumerate(plans)]
    places: dict[MetadataIndex, _StorageInfo] = {}
    for share in shares:
        begin = 0
        for box in share.boxes:
            length = archive_length(box.pickled, box.size)
            places[box.index] = _StorageInfo(share.file, begin, length)
            begin += length
    whole = Metadata(metadata.state_dict_metadata, storage_data=places, version=WRITTEN_AS)
    first, *others = shares
    return [RankPlan(first.file, first.boxes, pickle.dumps(whole)), *others]


def _planned(plan: SavePlan) -> tuple[PlannedBox, ...]:
    boxes = []
    for item in plan.items:
        assert item.tensor_data is not None and item.tensor_data.chunk is not None
        shape, dtype = item.tensor_data.chunk.sizes, item.tensor_data.properties.dtype
        boxes.append(PlannedBox(item.index, pickled_tensor(shape, dtype), dtype.itemsize * shape.numel()))
    return tuple(boxes)


def _write_item(index: MetadataIndex, shard: LocalShard) -> WriteItem:
    return WriteItem(
        index=index,
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=chunk_of(shard),
            properties=TensorProperties.create_from_tensor(shard.local),
            size=torch.Size(shard.global_shape),
        ),
    )


def chunk_of(shard: LocalShard) -> ChunkStorageMetadata:
    """A box in DCP's words."""
    return ChunkStorageMetadata(offsets=torch.Size(shard.offset), sizes=shard.local.shape)


def pickled_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """What torch.save writes of a contiguous tensor on the CPU beside its values."""
    stream = io.BytesIO()
    _TensorPickler(stream, protocol=2).dump(_Template(tuple(shape), dtype))
    return stream.getvalue()


@dataclass(frozen=True)
class _Values:
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Template:
    """Is pickled as a tensor would be that has memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        like = torch.empty(self.shape, dtype=self.dtype, device="meta")
        values = _Values(self.dtype, like.numel())
        return torch._utils._rebuild_tensor_v2, (values, 0, self.shape, like.stride(), False, OrderedDict())


class _TensorPickler(pickle.Pickler):
    """Leaves values out, as torch.save does: they are the archive's first."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Values):
            return None
        kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[obj.dtype])
        return "storage", kind, "0", "cpu", obj.numel
