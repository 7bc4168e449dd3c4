"""Bytes of tensors as files that torch.load and torch.distributed.checkpoint read, written without torch.

A data file is a row of archives, one of each tensor, as torch.save makes them: a zip file whose members are not
compressed. The lengths are known before anything is written, so what lies where can be planned.
Source: APPNOTE.TXT of PKWARE, version 6.3.10; torch/serialization.py.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import xxhash

_ALIGNMENT = 64
"""Values begin at a multiple of it within their archive, as torch's own do."""
_BLOCK = 4 << 20
"""Bytes that are hashed and written at a time, so that they come from the processor's cache the second time."""
_BUFFER = 1 << 20
_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_SIZES = struct.Struct("<HHQQ")
_PADDING = struct.Struct("<2sH")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4sHHHHLLH")
_VERSION = 45
"""Of the zip format: the first that knows archives of 4 GiB and more, as all are written here."""
_DATE = 0x21
"""The first of January 1980: equal tensors make equal files."""
_LARGE = 0xFFFFFFFF
_VALUES = "archive/data/0"


def archive_length(pickled: bytes, size: int) -> int:
    """Bytes of the archive of a tensor.

    Args:
        pickled: how it is made of its values.
        size: of the values in bytes.
    """
    members, values = _members(pickled), _Member(_VALUES, size, 0)
    begin = sum(len(member.local_header()) + member.size for member in members)
    everything = (*members, values)
    return begin + len(values.local_header(begin)) + size + len(_directory(everything, [0] * len(everything), 0))


class DataFile:
    """A new file of archives, hashed as it is written; flushed to the disk at the end of a `with` block.

    Args:
        path: must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb", buffering=_BUFFER)
        self._hash = xxhash.xxh3_128()
        self.size = 0

    @property
    def xxh3(self) -> str:
        """Xxh3-128 in hex of all that was added."""
        return self._hash.hexdigest()

    def add(self, pickled: bytes, values: memoryview) -> None:
        """Append the archive of a tensor, :func:`archive_length` bytes.

        Args:
            pickled: how it is made of its values.
            values: bytes of them, in the order of memory.
        """
        contents = {"archive/data.pkl": pickled, **_FIXED}
        members, offsets, begin = _members(pickled), [], 0
        for member in members:
            offsets.append(begin)
            begin += self.write(member.local_header()) + self.write(contents[member.name])
        tensor = _Member(_VALUES, len(values), zlib.crc32(values))
        offsets.append(begin)
        begin += self.write(tensor.local_header(begin)) + self.write(values)
        self.write(_directory((*members, tensor), offsets, begin))

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes as they are; how many there were."""
        for block in _blocks(content):
            self._hash.update(block)
            self._file.write(block)
        self.size += len(content)
        return len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())


@dataclass(frozen=True)
class _Member:
    """A file of an archive."""

    name: str
    size: int
    crc32: int

    def local_header(self, begin: int | None = None) -> bytes:
        """What stands before its content; `begin`, where it stands, for a content that is to be aligned."""
        extra = _SIZES.pack(1, 16, self.size, self.size)
        header = _LOCAL.size + len(self.name) + len(extra)
        if begin is not None:
            gap = -(begin + header + _PADDING.size) % _ALIGNMENT
            extra += _PADDING.pack(b"FB", gap) + b"Z" * gap
        fields = (_VERSION, 0, 0, 0, _DATE, self.crc32, _LARGE, _LARGE, len(self.name), len(extra))
        return _LOCAL.pack(b"PK\x03\x04", *fields) + self.name.encode() + extra

    def entry(self, offset: int) -> bytes:
        """What the directory says of it."""
        extra = _SIZES.pack(1, 16, self.size, self.size)
        fields = (_VERSION, _VERSION, 0, 0, 0, _DATE, self.crc32, _LARGE, _LARGE, len(self.name), len(extra))
        return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, 0, offset) + self.name.encode() + extra


_FIXED = {"archive/byteorder": sys.byteorder.encode(), "archive/version": b"3\n"}


def _members(pickled: bytes) -> tuple[_Member, ...]:
    """All but the values, which come last."""
    contents = {"archive/data.pkl": pickled, **_FIXED}
    return tuple(_Member(name, len(content), zlib.crc32(content)) for name, content in contents.items())


def _directory(members: tuple[_Member, ...], offsets: list[int], begin: int) -> bytes:
    """The end of an archive, which stands at byte `begin` of it."""
    entries = b"".join(member.entry(offset) for member, offset in zip(members, offsets, strict=True))
    count, size = len(members), len(entries)
    end64 = _END64.pack(b"PK\x06\x06", _END64.size - 12, _VERSION, _VERSION, 0, 0, count, count, size, begin)
    locator = _LOCATOR.pack(b"PK\x06\x07", 0, begin + size, 1)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, size, _LARGE, 0)
    return entries + end64 + locator + end


def _blocks(content: bytes | memoryview) -> Iterator[memoryview]:
    whole = memoryview(content)
    for begin in range(0, len(whole), _BLOCK):
        yield whole[begin : begin + _BLOCK]
