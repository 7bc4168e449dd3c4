"""What a file name says of its content: format and compression."""

from __future__ import annotations

from typing import Literal, NamedTuple

from data_pipeline.errors import DataError

Format = Literal["jsonl", "txt", "parquet", "tar"]
Compression = Literal["none", "gz", "zst", "xz"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".tar": "tar",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".xz": "xz"}


class Encoding(NamedTuple):
    """How the documents of a file are stored: the format inside and the compression around it."""

    format: Format
    compression: Compression


def encoding_of(name: str, place: str) -> Encoding:
    """The encoding of a file of this name; ``.json`` is JSON lines too, ``.tgz`` a compressed tar.

    Raises: DataError naming ``place`` if the ending is unknown.
    """
    stem, dot, suffix = name.lower().replace(".tgz", ".tar.gz").rpartition(".")
    compression = _COMPRESSIONS.get(dot + suffix, "none")
    if compression != "none":
        _, dot, suffix = stem.rpartition(".")
    found = _FORMATS.get(dot + suffix)
    if found is None:
        raise DataError(
            f"{place}: unknown file type; readable are {', '.join(_FORMATS)}, plain or {', '.join(_COMPRESSIONS)}"
        )
    return Encoding(found, compression)
