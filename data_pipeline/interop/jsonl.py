"""JSON lines, one document each: ``{"input_ids": [...]}``, and its text on request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.interop.block import BLOCK_TOKENS, TokenBlock, offsets_of
from data_pipeline.interop.files import Files
from data_pipeline.interop.options import Reading, Writing
from data_pipeline.sources import find_sources
from data_pipeline.sources.streams import opened
from data_pipeline.sources.streams import reading as reading_of

COLUMN = "input_ids"


def default_dtype(vocab_size: int) -> str:
    """JSON has integers of any size."""
    return "int64"


def read(path: Path, reading: Reading) -> Iterator[TokenBlock]:
    """Read the lines of a file, plain, ``.gz``, ``.xz`` or ``.zst``, as documents.

    Args:
        path: the file.
        reading: `column`: the field of the ids (``input_ids``).

    Raises: DataError if the file cannot be read or a line has no list of integers; names the line.
    """
    column = reading.column or COLUMN
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    tokens = 0
    (file,) = find_sources([str(path)])
    with opened(file) as stream, reading_of(file):
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            rows.append(_ids(line, column, f"{path}:{number}"))
            tokens += rows[-1].size
            if tokens >= BLOCK_TOKENS:
                yield _block(rows)
                rows, tokens = [], 0
    if rows:
        yield _block(rows)


def write(folder: Path, name: str, blocks: Iterable[TokenBlock], writing: Writing) -> None:
    """Write ``NAME-00000.jsonl`` and so on.

    Args:
        folder: an existing folder.
        name: how the files are called.
        blocks: the documents.
        writing: `decode` for a field ``text``, and `file_bytes`: a file is closed after the block that reaches this.
    """
    with Files(folder, name, ".jsonl", writing.file_bytes) as files:
        for block in blocks:
            stream = files.next()
            for row in block.rows():
                ids = row.tolist()
                fields: dict[str, Any] = {COLUMN: ids}
                if writing.decode is not None:
                    fields["text"] = writing.decode(ids)
                stream.write(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _ids(line: bytes, column: str, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error})") from None
    if not isinstance(fields, dict) or column not in fields:
        names = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
        raise DataError(
            f"{where}: no field {column!r} among {names}; name one with --column, or turn text into tokens with "
            "`ptm data build`"
        )
    ids = fields[column]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise DataError(f"{where}: {column!r} must be a list of integers")
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        raise DataError(f"{where}: {column!r} holds an integer of more than 64 bits, which is no token id") from None


def _block(rows: list[np.ndarray[Any, np.dtype[np.int64]]]) -> TokenBlock:
    return TokenBlock(np.concatenate(rows), offsets_of(np.array([row.size for row in rows], dtype=np.int64)))
