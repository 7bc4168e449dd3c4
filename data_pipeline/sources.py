"""Files of text -> documents: jsonl and txt, plain or gzip, in an order that depends on the file names alone."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from data_pipeline.errors import DataError

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """One text, as found in a source file.

    Attributes:
        key: the document's ``id`` where it has one, else ``file:line``.
        text: its characters, never blank.
    """

    key: str
    text: str


@dataclass(frozen=True)
class SourceFile:
    """What identifies a source file wherever it lies.

    Attributes:
        name: file name without folders.
        bytes: size on disk.
        xxh3: hash of its bytes (xxh3-128, hexadecimal).
    """

    name: str
    bytes: int
    xxh3: str


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Resolve paths and globs to files, sorted, each once, whatever the order of the patterns.

    Raises: DataError naming the pattern that is empty, a folder, or of an unknown type.
    """
    if not patterns:
        raise DataError("no input given: name at least one .jsonl or .txt file (plain or .gz)")
    found = sorted({path for pattern in patterns for path in _expand(str(pattern))})
    for path in found:
        _reader_of(path)
    return found


def describe_files(patterns: Sequence[str]) -> list[SourceFile]:
    """Hash the source files, in reading order, so that a result can name the input that made it."""
    return [SourceFile(path.name, path.stat().st_size, _hash(path)) for path in find_files(patterns)]


def read_documents(patterns: Sequence[str]) -> Iterator[Document]:
    """Read all documents of all files, one at a time.

    ``.jsonl``: one object per line with the field ``text`` and optionally ``id``. ``.txt``: documents are
    separated by blank lines. Both may end in ``.gz``. Documents of white space alone are left out.

    Args:
        patterns: file names or globs (``**`` goes into sub-folders).

    Yields: documents, file by file in sorted order.
    Raises: DataError naming the pattern, or ``file:line`` of what cannot be read.
    """
    for path in find_files(patterns):
        yield from _reader_of(path)(path)


def _expand(pattern: str) -> list[Path]:
    literal = Path(pattern)
    if literal.is_dir():
        raise DataError(f"{pattern} is a folder; name the files in it, for example '{pattern.rstrip('/')}/*.jsonl'")
    if literal.exists():
        return [literal]
    if not glob.has_magic(pattern):
        raise DataError(f"no such file: {pattern}; check the path or give a glob in quotes")
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [path for path in map(Path, matches) if path.is_file()]
    if not files:
        raise DataError(f"no file matches '{pattern}'; check the path")
    return files


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with _opened(path, path.open) as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _reader_of(path: Path) -> Callable[[Path], Iterator[Document]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _read_jsonl
    if name.endswith(".txt"):
        return _read_txt
    raise DataError(f"{path}: unknown file type; readable are .jsonl and .txt, plain or .gz")


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _parse(line, where)
        text = record.get("text")
        if not isinstance(text, str):
            raise DataError(f'{where}: no string field \'text\'; each line must be an object like {{"text": "..."}}')
        if text.strip():
            _check_unicode(text, where)
            yield Document(str(record.get("id", where)), text)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"{where}: not valid JSON ({reason}); each line must be one JSON object") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object; each line must be an object with a field 'text'")
    return record


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of 'text' is half of a surrogate pair, which no UTF-8 text can hold; "
            "repair or remove the line"
        ) from error


def _read_txt(path: Path) -> Iterator[Document]:
    paragraph: list[str] = []
    first = 0
    for number, line in _lines(path):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line.removesuffix("\n").removesuffix("\r"))
        elif paragraph:
            yield Document(f"{path}:{first}", "\n".join(paragraph))
            paragraph = []
    if paragraph:
        yield Document(f"{path}:{first}", "\n".join(paragraph))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    opener = gzip.open if path.name.endswith(".gz") else Path.open
    with _opened(path, cast(Callable[..., BinaryIO], opener), path) as stream:
        lines = iter(stream)
        while True:
            try:
                raw = next(lines, None)
            except (EOFError, zlib.error, OSError) as error:
                raise DataError(
                    f"{path}: damaged or unreadable after line {number} ({error}); copy it again"
                ) from error
            if raw is None:
                return
            number += 1
            try:
                # utf-8-sig drops the byte order mark that some editors put before the first line.
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 (byte {error.start} of the line); convert the file"
                ) from error


def _opened(path: Path, opener: Callable[..., BinaryIO], *arguments: Path) -> BinaryIO:
    try:
        return opener(*arguments, "rb")
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror or error}") from error
