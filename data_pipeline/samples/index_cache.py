"""Sample indexes kept on disk: found once for the same shards and rules, mapped by every process that needs them.

A file is named by what its content follows from, and appears under that name only when it is complete. Any process
may make it, several at once too: each writes the same bytes, and the last rename stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError

Columns = dict[str, NDArray[Any]]
"""Arrays of one dimension by name."""

_ALIGNMENT = 64
"""Every column starts at a multiple of so many bytes."""


def cached_columns(
    folder: Path | None, about: Mapping[str, str | int], build: Callable[[], Iterator[Columns]]
) -> Columns:
    """The columns that `build` makes, from the cache if it has them.

    A damaged file is made anew. A folder that cannot be written costs time at every start and memory, nothing else.

    Args:
        folder: the cache; None builds in memory.
        about: all that the columns follow from: fingerprint of the shards, rules, their version and numbers.
        build: makes the columns piece by piece, of the same names and types each, to be joined.

    Returns: read-only maps of the file, or arrays in memory.

    Raises:
        DataError: what `build` meets.
    """
    if folder is None:
        return _joined(list(build()))
    key = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()
    path = folder / f"{key}.npy"
    found = _load(path, key)
    if found is not None:
        return found
    parts = list(build())
    try:
        with atomic_file(path) as stream:
            _write(stream, key, parts)
    except DataError:
        return _joined(parts)
    return _load(path, key) or _joined(parts)


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write(stream: BinaryIO, key: str, parts: Sequence[Columns]) -> None:
    """An array of bytes: a line of JSON that says what follows, and the columns."""
    sizes = {name: sum(part[name].size for part in parts) for name in parts[0]}
    columns = [{"name": name, "dtype": column.dtype.str, "size": sizes[name]} for name, column in parts[0].items()]
    digest = xxhash.xxh3_64()
    for data in _pieces(parts):
        digest.update(data)
    header = json.dumps({"key": key, "columns": columns, "xxh3": _seal(columns, digest.intdigest())}).encode()
    header += b" " * (-(len(header) + 1) % _ALIGNMENT) + b"\n"
    total = len(header) + sum(len(data) for data in _pieces(parts))
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (total,)})
    stream.write(header)
    for data in _pieces(parts):
        stream.write(data)


def _pieces(parts: Sequence[Columns]) -> Iterator[memoryview | bytes]:
    """The bytes of the columns, one after the other, each filled up to the alignment."""
    for name in parts[0]:
        size = 0
        for part in parts:
            data = np.ascontiguousarray(part[name]).data.cast("B")
            size += len(data)
            yield data
        yield bytes(-size % _ALIGNMENT)


def _seal(columns: Sequence[Mapping[str, Any]], data_hash: int) -> str:
    """Hash of the data and of what the header says about them."""
    return xxhash.xxh3_64_hexdigest(json.dumps([columns, data_hash]).encode())


def _load(path: Path, key: str) -> Columns | None:
    """The columns of a file, mapped; None if there is none, or none that is whole."""
    try:
        # A plain array over the map: slicing np.memmap itself costs several times more.
        file = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        data = file[_npy_header(file) :]
        length = data[: 1 << 16].tobytes().index(b"\n") + 1
        header = json.loads(data[:length].tobytes())
        seal = _seal(header["columns"], xxhash.xxh3_64_intdigest(data[length:].data))
        if header["key"] != key or header["xxh3"] != seal:
            return None
        columns = {}
        for column in header["columns"]:
            dtype = np.dtype(column["dtype"])
            end = length + column["size"] * dtype.itemsize
            columns[column["name"]] = data[length:end].view(dtype)
            length = end + -end % _ALIGNMENT
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return columns


def _npy_header(file: NDArray[np.uint8]) -> int:
    """Bytes of the header of an .npy file of version 1.0: 10, and as many more as the last two of them say."""
    return 10 + int.from_bytes(file[8:10].tobytes(), "little")
