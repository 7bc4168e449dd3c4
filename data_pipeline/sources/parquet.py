"""Parquet: one document per row, read by row groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.document import Document, SourceOptions, record_document
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.streams import damaged, opened_anywhere

_ROWS = 512


def row_group_bytes(file: SourceFile) -> list[int]:
    """Stored size of each row group, from the end of the file alone.

    Raises: DataError if it cannot be read or is not parquet.
    """
    with _table(file) as table:
        groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
        return [
            sum(group.column(column).total_compressed_size for column in range(group.num_columns)) for group in groups
        ]


def read_parquet(file: SourceFile, options: SourceOptions, begin: int, end: int | None) -> Iterator[Document]:
    """Documents of row groups ``[begin, end)``; rows without a text, or with a blank one, are left out.

    Values that JSON does not know, such as dates, become strings in ``Document.info``.

    Raises: DataError naming the columns there are if one is missing, or the file and row that cannot be read.
    """
    with _table(file) as table:
        columns = _columns(file, table.schema_arrow, options)
        row = sum(table.metadata.row_group(group).num_rows for group in range(begin))
        for group in range(begin, table.num_row_groups if end is None else end):
            # One row group at a time: the library fetches all that it is asked for before the first row comes.
            for records in _batches(table, group, columns, f"{file.place}, row group {group}"):
                for record in records:
                    document = _document(record, options, f"{file.place}@{row}", f"{file.place}, row {row}")
                    row += 1
                    if document:
                        yield document


def _batches(table: Any, group: int, columns: list[str], where: str) -> Iterator[list[dict[str, Any]]]:
    with _failures(where):
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False):
            yield batch.to_pylist()


def _document(record: dict[str, Any], options: SourceOptions, key: str, where: str) -> Document | None:
    if record[options.text_field] is None:
        return None
    if options.metadata_fields:
        fields = {name: json.loads(json.dumps(record[name], default=str)) for name in options.metadata_fields}
        record = {**record, **fields}
    return record_document(record, options, key=key, where=where)


def _columns(file: SourceFile, schema: Any, options: SourceOptions) -> list[str]:
    import pyarrow.types as kinds

    for name in (options.text_field, *options.metadata_fields):
        if name not in schema.names:
            raise DataError(f"{file.place}: no column '{name}'; its columns are {', '.join(schema.names)}")
    kind = schema.field(options.text_field).type
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_null(kind)):
        raise DataError(f"{file.place}: column '{options.text_field}' holds {kind}, not text; name the one with text")
    wanted = dict.fromkeys((options.text_field, *options.metadata_fields, options.id_field))
    return [name for name in wanted if name in schema.names]


@contextmanager
def _table(file: SourceFile) -> Iterator[Any]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{file.place}: parquet needs pyarrow; run pip install 'ptm-dist[data]'") from error
    with opened_anywhere(file) as stream, _failures(file.place), ParquetFile(stream, pre_buffer=True) as table:
        yield table


@contextmanager
def _failures(where: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(where, error) from error
