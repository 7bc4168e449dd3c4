"""What lies where in a checkpoint: its tensors, the boxes they were saved as, and the bytes of each box."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from ptm_dist.parallel.shards import LocalShard


@dataclass(frozen=True)
class SavedBox:
    """A box of a tensor, and the bytes of a file that hold it.

    Attributes:
        name: canonical name of the tensor.
        offset: first index in each dimension.
        shape: of the box.
        file: name within the checkpoint.
        begin: first byte.
        length: in bytes.
    """

    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: canonical name, such as `model.layers.0.ffn.up.weight`.
        shape: of the whole tensor.
        dtype: as it was saved.
        boxes: that make it up, by offset.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: tuple[SavedBox, ...]

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Contents:
    """The tensors of a sound checkpoint by name, each read whole when it is asked for, to the bit as it was saved.

    Args:
        checkpoint: directory of the checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        metadata = FileSystemReader(checkpoint).read_metadata()
        entries = metadata.state_dict_metadata.items()
        places = cast(dict[MetadataIndex, Any], metadata.storage_data)
        self.tensors = {
            name: _saved_tensor(name, entry, places)
            for name, entry in sorted(entries)
            if isinstance(entry, TensorStorageMetadata)
        }

    def read(self, name: str) -> Tensor:
        """A whole tensor on the CPU; memory for it and for the largest of its boxes is in use meanwhile."""
        tensor = self.tensors[name]
        if len(tensor.boxes) == 1:
            return self._read_box(tensor.boxes[0])
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        for box in tensor.boxes:
            values = self._read_box(box)
            LocalShard(values, tensor.shape, box.offset).cut(whole).copy_(values)
        return whole

    def damaged_tensors(self, file: str) -> list[str]:
        """Tensors of which bytes in a file are not those that were saved, as far as their own check sums tell."""
        path = self._checkpoint / file
        boxes = [box for tensor in self.tensors.values() for box in tensor.boxes if box.file == file]
        with path.open("rb") as stream:
            return [box.name for box in sorted(boxes, key=lambda box: box.begin) if _is_damaged(stream, box)]

    def _read_box(self, box: SavedBox) -> Tensor:
        with (self._checkpoint / box.file).open("rb") as stream:
            view = cast(IO[bytes], _create_file_view(stream, box.begin, box.length))
            values: Tensor = torch.load(view, map_location="cpu", weights_only=True)
        return values


def _saved_tensor(name: str, entry: TensorStorageMetadata, places: dict[MetadataIndex, Any]) -> SavedTensor:
    boxes = []
    for chunk in entry.chunks:
        place = places[MetadataIndex(name, chunk.offsets)]
        offset, shape = tuple(chunk.offsets), tuple(chunk.sizes)
        boxes.append(SavedBox(name, offset, shape, place.relative_path, place.offset, place.length))
    ordered = tuple(sorted(boxes, key=lambda box: box.offset))
    return SavedTensor(name, tuple(entry.size), entry.properties.dtype, ordered)


def _is_damaged(stream: IO[bytes], box: SavedBox) -> bool:
    """Whether the check sums within a tensor's bytes, an archive that torch.save wrote, are wrong."""
    stream.seek(box.begin)
    try:
        with zipfile.ZipFile(io.BytesIO(stream.read(box.length))) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError, struct.error):
        return True
