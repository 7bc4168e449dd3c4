"""The bytes of a source file: from anywhere in it, or unpacked from its beginning."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.errors import DataError
from data_pipeline.sources import remote
from data_pipeline.sources.files import SourceFile

_LOCAL_BLOCK = 1 << 20
_REMOTE_BLOCK = 4 << 20
_PACKED_BLOCK = 64 << 10

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a stored or unpacked stream raises when the file is damaged or the disk fails."""


@contextmanager
def opened(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a source for reading and unpack it on the way.

    Yields: the bytes of its documents; a plain file can be read from anywhere if ``file.ranges``.
    Raises: DataError if it cannot be opened, or if its size is not the one that was listed, before or afterwards.
    """
    with opened_stored(file) as stored, _unpacked(stored, file) as stream:
        yield stream


@contextmanager
def opened_anywhere(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a source like ``opened``, always readable from anywhere: by a temporary copy where it is not so already."""
    with opened(file) as stream:
        if file.ranges and file.encoding.compression == "none":
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            with reading(file):
                shutil.copyfileobj(stream, copy, _LOCAL_BLOCK)
            copy.seek(0)
            yield cast(BinaryIO, copy)


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn errors of the disk and of unpacking into one that names the file.

    Raises: DataError.
    """
    try:
        yield
    except DAMAGE as error:
        raise damaged(file.place, error) from error


def damaged(where: str, error: BaseException) -> DataError:
    """The error of bytes that cannot be read or unpacked."""
    return DataError(f"{where}: damaged or unreadable ({error or type(error).__name__}); copy the file again")


@contextmanager
def opened_stored(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a source as it is stored, without unpacking.

    Yields: its bytes, readable from anywhere if ``file.ranges``.
    Raises: DataError if it cannot be opened or its size is not the one that was listed, before or afterwards.
    """
    if not file.is_local:
        opener = remote.open_ranges if file.ranges else remote.open_whole
        with opener(file.location, file.bytes) as raw:
            yield cast(BinaryIO, io.BufferedReader(raw, _REMOTE_BLOCK))
        return
    with _opened_path(file.location) as stream:
        _check_size(file, stream)
        try:
            yield stream
        except Exception:
            # Half a line or half an archive is what a file looks like that somebody writes or cuts meanwhile.
            _check_size(file, stream)
            raise
        _check_size(file, stream)


def _opened_path(location: str) -> BinaryIO:
    try:
        return Path(location).open("rb", buffering=_LOCAL_BLOCK)
    except OSError as error:
        raise DataError(f"cannot open {location}: {error.strerror or error}") from error


def _check_size(file: SourceFile, stream: BinaryIO) -> None:
    now = os.fstat(stream.fileno()).st_size
    if now != file.bytes:
        raise remote.changed(file.location, file.bytes, now)


@contextmanager
def _unpacked(stored: BinaryIO, file: SourceFile) -> Iterator[BinaryIO]:
    compression = file.encoding.compression
    if compression == "none":
        yield stored
        return
    # The buffer finds the ends of lines faster than the unpackers do.
    with io.BufferedReader(_UNPACKERS[compression](stored), _LOCAL_BLOCK) as stream:
        yield stream


class _Zstandard(io.RawIOBase):
    """All frames of a stream. The library's own reader takes a stream that is cut short for its end."""

    def __init__(self, stored: BinaryIO) -> None:
        import zstandard

        # Archives packed with --ultra --long need windows up to 2 GiB; others take no more memory for it.
        self._library = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._failed = zstandard.ZstdError
        self._stored = stored
        self._frame = self._library.decompressobj()
        self._begun = False
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._stored.read(_PACKED_BLOCK)
            if not self._packed:
                if self._begun:
                    raise EOFError("zstd frame ended before its end mark")
                return 0
            self._ready = memoryview(self._next())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        try:
            data = self._frame.decompress(self._packed)
        except self._failed as error:
            raise OSError(str(error)) from error
        self._begun = not self._frame.eof
        self._packed = self._frame.unused_data
        if self._frame.eof:
            self._frame = self._library.decompressobj()
        return data


_UNPACKERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gz": lambda stored: gzip.GzipFile(fileobj=stored),
    "xz": lzma.LZMAFile,
    "zst": _Zstandard,
}
