"""Numbered output files of limited size, and the input files that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from data_pipeline.errors import DataError


class Files:
    """``NAME-00000SUFFIX``, ``NAME-00001SUFFIX`` and so on; each is closed once it has `limit` bytes.

    The last one is closed at the end of a ``with`` block.
    """

    def __init__(self, folder: Path, name: str, suffix: str, limit: int) -> None:
        self._folder, self._name, self._suffix, self._limit = folder, name, suffix, limit
        self._count = 0
        self._stream: BinaryIO | None = None

    def next(self) -> BinaryIO:
        """The file for what comes next; to be written to at once."""
        if self._stream is not None and self._stream.tell() >= self._limit:
            self._stream.close()
            self._stream = None
        if self._stream is None:
            self._stream = (self._folder / f"{self._name}-{self._count:05d}{self._suffix}").open("wb")
            self._count += 1
        return self._stream

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def input_files(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that a user means.

    Args:
        paths: files, folders (all files in them that end like this), and names without their ending.
        suffixes: endings of the format's files; the first is added where a name has none of them.

    Returns: in the order given, those of a folder by name.
    Raises: DataError if there is no such file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith(tuple(suffixes)))
            if not inside:
                raise DataError(f"no {' or '.join(suffixes)} file in {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        elif (completed := path.with_name(path.name + suffixes[0])).is_file():
            found.append(completed)
        else:
            raise DataError(f"no file {path}, nor {completed.name} beside it; check the name")
    return found
