"""What identifies source files wherever they lie: name, size and a hash of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from data_pipeline.sources.files import SourceFile, find_sources
from data_pipeline.sources.streams import opened_stored, reading

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileDescription:
    """A file by its content.

    Attributes:
        name: file name without folders.
        bytes: stored size.
        xxh3: hash of its bytes (xxh3-128, hexadecimal).
    """

    name: str
    bytes: int
    xxh3: str


def describe_files(patterns: Sequence[str]) -> list[FileDescription]:
    """Hash the source files, in reading order, so that a result can name the input that made it.

    Raises: DataError if one cannot be found or read.
    """
    return [FileDescription(file.name, file.bytes, _hash(file)) for file in find_sources(patterns)]


def _hash(file: SourceFile) -> str:
    digest = xxhash.xxh3_128()
    with opened_stored(file) as stream, reading(file):
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
