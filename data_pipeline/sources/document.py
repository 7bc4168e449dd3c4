"""One text with its name: what every source gives, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.errors import DataError


@dataclass(frozen=True)
class Document:
    """One text, as found in a source.

    Attributes:
        key: the document's id where it has one, else the file and where in it; the same however the file is cut.
        text: its characters, never blank.
        info: the metadata fields that were asked for and are there, as JSON values.
    """

    key: str
    text: str
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceOptions:
    """Where in a source its documents are.

    Attributes:
        text_field: field or column of the text (JSON lines, parquet, the ``.json`` members of a tar).
        id_field: field or column of the id; a document without one is named by its place.
        metadata_fields: fields or columns to keep in ``Document.info``.
        txt_documents: what one document of a ``.txt`` file is: lines up to a blank one, each line, or the file.
    """

    text_field: str = "text"
    id_field: str = "id"
    metadata_fields: tuple[str, ...] = ()
    txt_documents: Literal["blank_line", "line", "file"] = "blank_line"


def record_document(record: Mapping[str, Any], options: SourceOptions, *, key: str, where: str) -> Document | None:
    """The document of a JSON object or a row, None if its text is blank.

    Args:
        record: fields by name.
        options: which fields to take.
        key: name of a document that has no id.
        where: place for messages.

    Raises: DataError naming ``where`` if there is no text or it is no Unicode text.
    """
    text = record.get(options.text_field)
    if not isinstance(text, str):
        raise DataError(
            f"{where}: no string field '{options.text_field}'; its fields are {', '.join(map(str, record)) or 'none'}; "
            "name the one with the text"
        )
    if not text.strip():
        return None
    check_unicode(text, options.text_field, where)
    identifier = record.get(options.id_field)
    info = {name: record[name] for name in options.metadata_fields if name in record}
    return Document(key if identifier is None else str(identifier), text, info)


def check_unicode(text: str, name: str, where: str) -> None:
    """Refuse halves of surrogate pairs, which JSON can write and UTF-8 cannot.

    Raises: DataError naming ``where`` and the character of field ``name``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of '{name}' is half of a surrogate pair, which no UTF-8 text can hold; "
            "repair or remove it"
        ) from error
