"""Parquet with a list column ``input_ids``, as Hugging Face's ``datasets`` has it; text beside it on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.interop.block import BLOCK_TOKENS, TokenBlock, offsets_of
from data_pipeline.interop.options import Reading, Writing

COLUMN = "input_ids"
_ROWS = 1024
_GROUP_TOKENS = 16 * BLOCK_TOKENS


def default_dtype(vocab_size: int) -> str:
    """The integer type of the list's values."""
    return "int32" if vocab_size <= 1 << 31 else "int64"


def read(path: Path, reading: Reading) -> Iterator[TokenBlock]:
    """Read the rows of a file as documents, about a thousand at a time.

    Args:
        path: the file.
        reading: `column` of the ids (``input_ids``).

    Raises: DataError if the file cannot be read, or the column is missing or holds no lists of integers.
    """
    pa, parquet = _library()
    column = reading.column or COLUMN
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {error}") from error
    with file:
        schema = file.schema_arrow
        if column not in schema.names:
            raise DataError(f"{path}: no column {column!r} among {', '.join(schema.names)}; name one with --column")
        kind = schema.field(column).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_integer(kind.value_type):
            raise DataError(
                f"{path}: column {column!r} holds {kind}, lists of integers are needed; turn text into tokens with "
                "`ptm data build`"
            )
        try:
            for batch in file.iter_batches(_ROWS, columns=[column]):
                yield _block(batch.column(0), path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is damaged: {error}; copy it again") from error


def write(folder: Path, name: str, blocks: Iterable[TokenBlock], writing: Writing) -> None:
    """Write ``NAME-00000.parquet`` and so on, which ``datasets.load_dataset`` takes for the split ``NAME``.

    Args:
        folder: an existing folder.
        name: how the files are called.
        blocks: the documents; about four million tokens are in memory.
        writing: `dtype` of the values, `decode` for a column ``text``, and `file_bytes` of ids in a file.
    """
    pa, parquet = _library()
    writer = None
    files = written = 0
    try:
        for group in _groups(blocks):
            table = _table(pa, group, writing)
            if writer is None or written >= writing.file_bytes:
                if writer is not None:
                    writer.close()
                path = folder / f"{name}-{files:05d}.parquet"
                writer = parquet.ParquetWriter(path, table.schema, compression="zstd")
                files, written = files + 1, 0
            writer.write_table(table)
            written += sum(block.tokens.size for block in group) * writing.dtype.itemsize
    finally:
        if writer is not None:
            writer.close()


def _groups(blocks: Iterable[TokenBlock]) -> Iterator[list[TokenBlock]]:
    """Blocks that become one row group."""
    group: list[TokenBlock] = []
    tokens = 0
    for block in blocks:
        group.append(block)
        tokens += block.tokens.size
        if tokens >= _GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _table(pa: Any, group: list[TokenBlock], writing: Writing) -> Any:
    values = np.concatenate([block.tokens.astype(writing.dtype) for block in group])
    offsets = offsets_of(np.concatenate([np.diff(block.offsets) for block in group]))
    columns = {COLUMN: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))}
    if writing.decode is not None:
        texts = [writing.decode(row.tolist()) for block in group for row in block.rows()]
        columns["text"] = pa.array(texts, pa.string())
    return pa.table(columns)


def _block(column: Any, path: Path) -> TokenBlock:
    import pyarrow.compute

    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(column), 0)
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{path}: an id is missing (null) in a list of ids; write the file again without it")
    return TokenBlock(values.to_numpy(), offsets_of(lengths.to_numpy()))


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("parquet needs pyarrow; install it with `pip install 'ptm-dist[data]'`") from None
    return pyarrow, pyarrow.parquet
