"""Sources cut into pieces that can be read one by one, anywhere, and together are all documents once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from data_pipeline.errors import DataError
from data_pipeline.sources.document import Document, SourceOptions
from data_pipeline.sources.files import SourceFile, find_sources
from data_pipeline.sources.jsonl import read_jsonl
from data_pipeline.sources.parquet import read_parquet, row_group_bytes
from data_pipeline.sources.tars import read_tar
from data_pipeline.sources.txt import read_txt

_REQUESTS = 16
_USUAL = SourceOptions()


@dataclass(frozen=True)
class Piece:
    """A part of a source: the documents that begin in ``[begin, end)``.

    Attributes:
        source: number of the file in the list that was cut.
        begin: first unit: bytes of plain JSON lines and text, row groups of parquet, else 0.
        end: unit after the last one; 1 for a file that must be read from its beginning.
        weight: about how many stored bytes are read for it.
    """

    source: int
    begin: int
    end: int
    weight: int


def cut_sources(files: Sequence[SourceFile], options: SourceOptions, piece_bytes: int) -> list[Piece]:
    """Cut files near every ``piece_bytes`` where their format allows it.

    The pieces follow from the files alone, not from the machine or the number of readers.

    Args:
        files: what to cut; empty files have no piece.
        options: how documents lie in them.
        piece_bytes: stored bytes of a piece, at least 1.

    Returns: pieces in the order of the documents.
    Raises: DataError if a parquet file cannot be read.
    """
    if piece_bytes < 1:
        raise DataError(f"piece_bytes={piece_bytes} must be at least 1")

    tables = [source for source, file in enumerate(files) if _unit(file, options) == "row groups" and file.bytes]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        row_groups = dict(zip(tables, pool.map(row_group_bytes, (files[source] for source in tables)), strict=True))
    pieces = []
    for source, file in enumerate(files):
        if source in row_groups:
            pieces += _cut_row_groups(source, row_groups[source], piece_bytes)
        elif not _is_empty(file):
            pieces += _cut_bytes(source, file, options, piece_bytes)
    return pieces


def read_piece(files: Sequence[SourceFile], piece: Piece, options: SourceOptions) -> Iterator[Document]:
    """Documents of one piece, in the order of the file.

    Args:
        files: the list that was cut.
        piece: which part of which file.
        options: the same ones as for cutting.

    Raises: DataError naming the place of what cannot be read, or the file that changed since it was found.
    """
    file = files[piece.source]
    if _unit(file, options) == "file":
        return _read(file, options, 0, None)
    return _read(file, options, piece.begin, piece.end)


def read_documents(patterns: Sequence[str], options: SourceOptions = _USUAL) -> Iterator[Document]:
    """Read all documents of all files, one at a time, in the order of ``find_sources``.

    Args:
        patterns: file names, globs (``**`` goes into sub-folders) or URLs.
        options: where in a file its documents are.

    Raises: DataError naming the pattern, or the place of what cannot be read.
    """
    for file in find_sources(patterns):
        if not _is_empty(file):
            yield from _read(file, options, 0, None)


def _unit(file: SourceFile, options: SourceOptions) -> str:
    encoding = file.encoding
    if encoding.compression != "none" or not file.ranges or encoding.format == "tar":
        return "file"
    if encoding.format == "parquet":
        return "row groups"
    return "file" if encoding.format == "txt" and options.txt_documents == "file" else "bytes"


def _is_empty(file: SourceFile) -> bool:
    return file.bytes == 0 and file.ranges


def _cut_bytes(source: int, file: SourceFile, options: SourceOptions, piece_bytes: int) -> list[Piece]:
    if _unit(file, options) == "file":
        return [Piece(source, 0, 1, file.bytes)]
    count = -(-file.bytes // piece_bytes)
    bounds = [file.bytes * number // count for number in range(count + 1)]
    return [Piece(source, begin, end, end - begin) for begin, end in pairwise(bounds)]


def _cut_row_groups(source: int, sizes: Sequence[int], piece_bytes: int) -> list[Piece]:
    pieces, begin, weight = [], 0, 0
    for end, size in enumerate(sizes, start=1):
        weight += size
        if weight >= piece_bytes or end == len(sizes):
            pieces.append(Piece(source, begin, end, weight))
            begin, weight = end, 0
    return pieces


def _read(file: SourceFile, options: SourceOptions, begin: int, end: int | None) -> Iterator[Document]:
    reader = file.encoding.format
    if reader == "jsonl":
        return read_jsonl(file, options, begin, end)
    if reader == "txt":
        return read_txt(file, options, begin, end)
    if reader == "parquet":
        return read_parquet(file, options, begin, end)
    return read_tar(file, options)
