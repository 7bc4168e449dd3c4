"""A file that arrives in parts, in any order, and remembers over a kill which of them are there."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class PartialFile:
    """A file of known size, filled part by part; a journal beside it has one byte for each part.

    The journal is written after its part. A killed process leaves both in order; after a power cut the journal
    may be ahead, which the hashes of the shard bring to light.

    Args:
        path: the file; it may hold parts already.
        size: bytes of the whole.
        part_bytes: size of a part; a journal of other parts is not used.

    Raises:
        OSError: the place cannot be written.
    """

    def __init__(self, path: Path, size: int, part_bytes: int) -> None:
        self.path = path
        self.size = size
        self.part_bytes = part_bytes
        self._header = part_bytes.to_bytes(8, "little")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._journal = os.open(journal_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if os.fstat(self._file).st_size != size or self._read_journal()[:8] != self._header:
            os.ftruncate(self._journal, 0)
        os.ftruncate(self._file, size)
        os.pwrite(self._journal, self._header, 0)
        os.ftruncate(self._journal, 8 + self.num_parts)

    @property
    def num_parts(self) -> int:
        """How many parts the whole has."""
        return -(-self.size // self.part_bytes)

    def range_of(self, part: int) -> tuple[int, int]:
        """The bytes [begin, end) of a part."""
        return part * self.part_bytes, min((part + 1) * self.part_bytes, self.size)

    def missing(self) -> list[int]:
        """Parts that are not there."""
        return [part for part, there in enumerate(self._read_journal()[8:]) if not there]

    def write(self, position: int, data: bytes) -> None:
        """Put bytes in their place; any thread may."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, position)
            view, position = view[written:], position + written

    def mark(self, part: int, *, there: bool) -> None:
        """Note that a part is whole, or that it has to come again."""
        os.pwrite(self._journal, b"\x01" if there else b"\x00", 8 + part)

    def forget(self, begin: int, end: int) -> None:
        """Let all parts that hold a byte of [begin, end) come again."""
        for part in range(begin // self.part_bytes, -(-end // self.part_bytes)):
            self.mark(part, there=False)

    def sync(self) -> None:
        """Put the bytes on disk."""
        os.fsync(self._file)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._journal)

    def _read_journal(self) -> bytes:
        return os.pread(self._journal, 8 + self.num_parts, 0)


def journal_of(path: Path) -> Path:
    """The journal of a partial file."""
    return path.with_name(f"{path.name}.parts")
