"""Parts of a tensor that torch.save wrote, read without the rest of it.

torch.save makes a zip archive whose members are not compressed: the values lie in the file as they lie in memory,
so a box of them is a few ranges of bytes.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptm_dist.errors import CheckpointError

_PAGE = 4096
"""Bytes that disks and the kernel read at least: a gap that is shorter is read as well."""
_BLOCK = 16 << 20
"""Bytes of whole rows that are in memory at a time beside the tensor that is filled."""
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip archive's member: what comes last is the lengths of its name and of what else is before its content."""
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}
"""By the names that archives have for them; tensors of other number formats are read whole."""


@dataclass(frozen=True)
class StoredTensor:
    """Where the values of a tensor lie in a file, without gaps and in the order of memory.

    Attributes:
        file: that is open.
        begin: byte of the first value.
        shape: of the tensor.
        dtype: of the values.
    """

    file: io.FileIO
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read_box(self, offset: tuple[int, ...], target: Tensor) -> None:
        """Fill `target`, of any dtype and device, with the box of its shape that begins at `offset`.

        Where a box is made of parts of rows, each part is read by itself, unless it is nearer to the next one than
        a page.

        Raises: CheckpointError if the file ends too early.
        """
        if not self.shape:
            self._fill(target.view(1), [0])
            return
        rows = max(1, _BLOCK // (self.dtype.itemsize * math.prod(self.shape[1:])))
        for first in range(0, target.shape[0], rows):
            self._read_rows((offset[0] + first, *offset[1:]), target[first : first + rows])

    def _read_rows(self, offset: tuple[int, ...], target: Tensor) -> None:
        cut = _last_cut(self.shape, tuple(target.shape))
        gap = self.dtype.itemsize * (self.shape[cut] - target.shape[cut]) * math.prod(self.shape[cut + 1 :])
        if cut == 0 or gap >= _PAGE:
            self._fill(target, self._runs(offset, tuple(target.shape)))
            return
        begin = tuple(0 if i == cut else first for i, first in enumerate(offset))
        shape = tuple(self.shape[i] if i == cut else size for i, size in enumerate(target.shape))
        values = torch.empty(shape, dtype=self.dtype)
        self._fill(values, self._runs(begin, shape))
        target.copy_(values.narrow(cut, offset[cut], target.shape[cut]))

    def _runs(self, offset: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
        """First elements of the pieces of a box that lie together, in their order."""
        cut = _last_cut(self.shape, shape)
        starts = np.zeros(1, dtype=np.int64)
        for i, first in enumerate(offset):
            indices = np.arange(first, first + (shape[i] if i < cut else 1))
            starts = np.add.outer(starts, indices * math.prod(self.shape[i + 1 :])).reshape(-1)
        found: list[int] = starts.tolist()
        return found

    def _fill(self, target: Tensor, starts: list[int]) -> None:
        """Read pieces of one size that begin at the elements `starts` into `target`, one after the other."""
        is_direct = target.device.type == "cpu" and target.dtype == self.dtype and target.is_contiguous()
        values = target if is_direct else torch.empty(target.shape, dtype=self.dtype)
        memory = values.view(-1).view(torch.uint8).numpy().data
        size = len(memory) // len(starts)
        for place, start in zip(range(0, len(memory), size), starts, strict=True):
            _read(self.file, memory[place : place + size], self.begin + start * self.dtype.itemsize)
        if not is_direct:
            target.copy_(values)


def find_tensor(file: io.FileIO, begin: int, length: int) -> StoredTensor | None:
    """The tensor in an archive that lies within a file; None if its values lie in another way.

    Args:
        file: that is open.
        begin: first byte of the archive.
        length: of the archive in bytes.

    Raises: CheckpointError if there is no archive.
    """
    try:
        with zipfile.ZipFile(_Part(file, begin, length)) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            described = _Description(io.BytesIO(archive.read(members["data.pkl"]))).load()
            order = archive.read(members["byteorder"]).decode()
        values = members["data/0"]
    except (zipfile.BadZipFile, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file.name} is damaged at byte {begin}: {error}; use another copy") from error
    if not isinstance(described, _Described) or not described.is_plain or order != sys.byteorder:
        return None
    if values.compress_type != zipfile.ZIP_STORED or values.file_size != described.size:
        return None
    header = bytearray(_LOCAL_HEADER.size)
    _read(file, memoryview(header), begin + values.header_offset)
    first = begin + values.header_offset + len(header) + sum(_LOCAL_HEADER.unpack(header))
    return StoredTensor(file, first, described.shape, described.dtype)


def read_whole(file: io.FileIO, begin: int, length: int) -> Tensor:
    """The tensor in an archive that lies within a file, whatever way its values lie."""
    content = io.BytesIO(_Part(file, begin, length).read())
    values: Tensor = torch.load(content, map_location="cpu", weights_only=True)
    return values


@dataclass(frozen=True)
class _Described:
    """What an archive says of its tensor; arguments of torch's own function that rebuilds one."""

    dtype: torch.dtype
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        return self.first == 0 and torch.empty_strided(self.shape, self.stride, device="meta").is_contiguous()

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class _Description(pickle.Unpickler):
    """Reads how a tensor is made of its values, and makes nothing; None for what it does not know."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _described
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _nothing

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]  # of ("storage", its type, key, device, elements)


def _described(dtype: Any, first: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Described | None:
    return _Described(dtype, first, shape, stride) if isinstance(dtype, torch.dtype) else None


def _nothing(*_: Any) -> None:
    return None


class _Part(io.RawIOBase):
    """A part of a file as a file; reads what it is asked for and nothing ahead."""

    def __init__(self, file: io.FileIO, begin: int, length: int) -> None:
        self._file, self._begin, self._length = file, begin, length
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._length - self._place))
        read = os.preadv(self._file.fileno(), [memoryview(buffer)[:size]], self._begin + self._place)
        self._place += read
        return read


def _last_cut(whole: tuple[int, ...], part: tuple[int, ...]) -> int:
    """The last dimension in which a box is smaller than its tensor; the first one if there is none."""
    return max((i for i, (size, some) in enumerate(zip(whole, part, strict=True)) if some < size), default=0)


def _read(file: io.FileIO, memory: memoryview, begin: int) -> None:
    done = 0
    while done < len(memory):
        read = os.preadv(file.fileno(), [memory[done:]], begin + done)
        if not read:
            raise CheckpointError(f"{file.name} ends too early, at byte {begin + done}; use another copy")
        done += read
