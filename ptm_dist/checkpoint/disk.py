"""DCP's view of the disk, with errors that say what happened."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem


class CandidFileSystem(FileSystem):
    """DCP's files, but a full disk stays an OSError: torch.save turns it into a riddle about positions."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open a file for DCP."""
        with super().create_stream(path, mode) as stream:
            watched = _WatchedStream(stream)
            try:
                yield watched
            except RuntimeError as error:
                if watched.failure is not None:
                    raise watched.failure from error
                raise


class _WatchedStream(io.IOBase):
    """Passes everything on to a binary stream and remembers how a write failed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written: int = self._stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        return written

    def tell(self) -> int:
        position: int = self._stream.tell()
        return position

    def fileno(self) -> int:
        descriptor: int = self._stream.fileno()
        return descriptor

    def flush(self) -> None:
        self._stream.flush()
