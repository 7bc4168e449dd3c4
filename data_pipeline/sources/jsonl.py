"""JSON lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.document import Document, SourceOptions, record_document
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import read_lines
from data_pipeline.sources.streams import opened


def read_jsonl(file: SourceFile, options: SourceOptions, begin: int, end: int | None) -> Iterator[Document]:
    """Documents of the lines that begin in bytes ``[begin, end)``; blank lines and blank texts are left out.

    Raises: DataError naming the line that is no JSON object with the text field.
    """
    with opened(file) as stream:
        for line in read_lines(file, stream, begin, end):
            if line.text.strip():
                where = line.where(file)
                record = parse_object(line.text, where)
                document = record_document(record, options, key=f"{file.place}@{line.offset}", where=where)
                if document:
                    yield document


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Raises: DataError naming ``where``.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{where}: not valid JSON ({reason}); there must be one JSON object") from error
    if not isinstance(record, dict):
        raise DataError(f'{where}: not a JSON object; there must be one like {{"text": "..."}}')
    return record
