"""Tar archives of raw text, as webdataset writes them: members of one key, next to each other, are one document."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BufferedReader
from itertools import groupby
from typing import IO, BinaryIO, Self, cast

from data_pipeline.errors import DataError
from data_pipeline.sources.document import Document, SourceOptions, record_document
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.jsonl import parse_object
from data_pipeline.sources.streams import DAMAGE, damaged, opened


def read_tar(file: SourceFile, options: SourceOptions) -> Iterator[Document]:
    """Documents of ``KEY.txt``, with id and metadata from a ``KEY.json`` beside it, or of ``KEY.json`` alone.

    Other members are passed over. A document without an id is named by its key.

    Raises: DataError naming the member that cannot be read, or the archive that is damaged or ends early.
    """
    with opened(file) as stream:
        for key, members in groupby(_members(file, stream), key=lambda member: member[0]):
            document = _document(file, options, key, [(suffix, data) for _, suffix, data in members])
            if document:
                yield document


def _document(file: SourceFile, options: SourceOptions, key: str, members: list[tuple[str, bytes]]) -> Document | None:
    where = f"{file.place}, member {key}"
    parts = dict(members)
    if len(parts) != len(members):
        raise DataError(f"{where}: more than one .{members[0][0]} of this key; write the archive again with other keys")
    try:
        texts = {suffix: data.decode("utf-8-sig") for suffix, data in parts.items()}
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); convert it") from error
    record = parse_object(texts["json"], f"{where}.json") if "json" in texts else {}
    if "txt" in texts:
        record = {**record, options.text_field: texts["txt"]}
    return record_document(record, options, key=f"{file.place}@{key}", where=where)


def _members(file: SourceFile, stream: BinaryIO) -> Iterator[tuple[str, str, bytes]]:
    where = file.place
    try:
        if not cast(BufferedReader, stream).peek(1):
            return
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as archive:
            while member := archive.next():
                where = f"{file.place}, member {member.name}"
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if stem and suffix.lower() in ("txt", "json") and member.isreg():
                    yield folder + slash + stem, suffix.lower(), cast(IO[bytes], archive.extractfile(member)).read()
                archive.members = []  # type: ignore[attr-defined]  # the library keeps the headers of all members otherwise
    except (*DAMAGE, tarfile.TarError) as error:
        raise damaged(where, error) from error


class _StrictHeader(tarfile.TarInfo):
    """A header that must be one: the library takes damaged or missing headers for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("the archive ends without its end mark")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(f"damaged header: {error}") from error
            raise
