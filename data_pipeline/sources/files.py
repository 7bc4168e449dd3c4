"""Patterns -> the files they name, on disk or behind a URL, in an order that depends on the names alone."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_pipeline.errors import DataError
from data_pipeline.sources import remote
from data_pipeline.sources.formats import Encoding, encoding_of

_REQUESTS = 16


@dataclass(frozen=True)
class SourceFile:
    """A file of documents, as it was when it was found.

    Attributes:
        location: path or URL.
        name: file name without folders and query.
        bytes: stored size; 0 too for a server that does not tell.
        version: changes when the file does: nanoseconds of the last write, etag or date; "" if unknown.
        ranges: reading may begin anywhere; some web servers only send whole files.
    """

    location: str
    name: str
    bytes: int
    version: str
    ranges: bool = True

    @property
    def place(self) -> str:
        """The location as messages show it: without the query of a URL, which may hold a key."""
        return remote.without_query(self.location)

    @property
    def is_local(self) -> bool:
        """Whether it lies in a file system of this machine."""
        return not remote.is_url(self.location)

    @property
    def encoding(self) -> Encoding:
        """Format and compression, by the name."""
        return encoding_of(self.name, self.place)


def find_sources(patterns: Sequence[str]) -> list[SourceFile]:
    """Resolve paths, globs and URLs to files, sorted by location, each once, whatever the order of the patterns.

    URLs are those of fsspec (``https://``, ``s3://``, ``memory://`` ...); globs work where the storage can list.
    In a web URL everything from ``?`` on is a query.

    Raises: DataError naming the pattern that is empty, a folder, of an unknown type, or cannot be reached.
    """
    if not patterns:
        raise DataError("no input given: name at least one file, such as 'corpus/*.jsonl' or an URL")
    urls = {url for pattern in patterns if remote.is_url(pattern) for url in remote.expand(pattern)}
    paths = {str(path) for pattern in patterns if not remote.is_url(pattern) for path in _expand(pattern)}
    for location in urls | paths:
        encoding_of(_name(location), remote.without_query(location))
    with ThreadPoolExecutor(_REQUESTS) as pool:
        files = [*map(_describe_local, paths), *pool.map(_describe_remote, urls)]
    return sorted(files, key=lambda file: file.location)


def _expand(pattern: str) -> list[Path]:
    local = unquote(urlsplit(pattern).path) if pattern.startswith("file://") else pattern
    literal = Path(local)
    if literal.is_dir():
        raise DataError(f"{pattern} is a folder; name the files in it, for example '{pattern.rstrip('/')}/*.jsonl'")
    if literal.exists():
        return [literal]
    if not glob.has_magic(local):
        raise DataError(f"no such file: {pattern}; check the path or give a glob in quotes")
    matches = glob.glob(local, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [path for path in map(Path, matches) if path.is_file()]
    if not files:
        raise DataError(f"no file matches '{pattern}'; check the path")
    return files


def _name(location: str) -> str:
    if not remote.is_url(location):
        return Path(location).name
    return unquote(remote.without_query(location).rstrip("/").rpartition("/")[2])


def _describe_local(location: str) -> SourceFile:
    try:
        status = Path(location).stat()
    except OSError as error:
        raise DataError(f"cannot read {location}: {error.strerror or error}") from error
    return SourceFile(location, _name(location), status.st_size, str(status.st_mtime_ns))


def _describe_remote(location: str) -> SourceFile:
    size, version, ranges = remote.describe(location)
    return SourceFile(location, _name(location), size, version, ranges)
