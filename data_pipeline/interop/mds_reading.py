"""Token ids out of MDS shards, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.interop import mds
from data_pipeline.interop.block import TokenBlock, cut, offsets_of
from data_pipeline.interop.options import Reading
from data_pipeline.sources.streams import DAMAGE, damaged

_BYTES_DTYPE = np.dtype("<i8")
"""What a column of encoding ``bytes`` holds unless the user says otherwise: LLM Foundry writes int64."""


def read(path: Path, reading: Reading) -> Iterator[TokenBlock]:
    """Read the samples of a data set as documents, shard by shard; one shard is in memory.

    Args:
        path: its ``index.json``.
        reading: `column` of the ids (or ``tokens`` or ``input_ids``); `dtype` of a column of encoding ``bytes``.

    Raises: DataError if a file is missing or damaged, or the column holds no rows of ids.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        shards = index["shards"] if index["version"] == mds.VERSION else None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a folder with an {mds.INDEX} of MDS") from error
    except (ValueError, KeyError, TypeError):
        shards = None
    if not isinstance(shards, list):
        raise DataError(f"{path} is no index of MDS, version {mds.VERSION}")
    for shard in shards:
        try:
            yield from _blocks(path.parent, shard, reading)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            name = shard.get("raw_data", {}).get("basename", "?") if isinstance(shard, dict) else "?"
            raise DataError(f"{path.parent / name} is damaged ({error}); copy it again") from error


def _blocks(folder: Path, shard: dict[str, Any], reading: Reading) -> Iterator[TokenBlock]:
    if shard["format"] != "mds":
        raise DataError(f"{folder}: shards of format {shard['format']!r}; only 'mds' can be imported")
    layout = _Layout.of(shard, folder / mds.INDEX, reading)
    data = np.frombuffer(_raw(folder, shard), dtype=np.uint8)
    count = int(shard["samples"])
    head = data[: 4 * (count + 2)].view("<u4")
    if head[0] != count or head[-1] != data.size:
        raise ValueError(f"its own header says {head[0]} samples, the index {count}")
    rows = [layout.ids(data[begin:end]) for begin, end in zip(head[1:-1].tolist(), head[2:].tolist(), strict=True)]
    offsets = offsets_of(np.array([row.size for row in rows], dtype=np.int64))
    for first, last in cut(offsets):
        yield TokenBlock(np.concatenate(rows[first:last]), offsets[first : last + 1] - offsets[first])


def _raw(folder: Path, shard: dict[str, Any]) -> bytes:
    """The bytes of a shard, found whole and unpacked."""
    raw, packed = shard["raw_data"], shard.get("zip_data")
    stored = raw if packed is None or (folder / raw["basename"]).is_file() else packed
    path: Path = folder / stored["basename"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; copy it again") from error
    if len(data) != stored["bytes"]:
        raise DataError(f"{path} is damaged: it has {len(data)} bytes, {stored['bytes']} expected; copy it again")
    for algorithm, expected in stored["hashes"].items():
        found = _hash(algorithm, data)
        if found is not None and found != expected:
            raise DataError(f"{path} is damaged: its {algorithm} is {found}, {expected} expected; copy it again")
    if stored is packed:
        data = _unpack(path, data)
        if len(data) != raw["bytes"]:
            raise DataError(
                f"{path} is damaged: it unpacks to {len(data)} bytes, {raw['bytes']} expected; copy it again"
            )
    return data


def _hash(algorithm: str, data: bytes) -> str | None:
    """The hash that the index keeps under this name; None: a kind that is not known here."""
    if algorithm in xxhash.algorithms_available:
        return str(getattr(xxhash, algorithm)(data).hexdigest())
    if algorithm in hashlib.algorithms_available and not algorithm.startswith("shake"):
        return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    return None


def _unpack(path: Path, data: bytes) -> bytes:
    import zstandard

    methods: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress,
        ".bz2": bz2.decompress,
        ".zstd": lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed),
    }
    if path.suffix not in methods:
        raise DataError(f"{path} is packed by a method that is not known here; unpack it first, or write it with zstd")
    try:
        return methods[path.suffix](data)
    except (*DAMAGE, ValueError, zstandard.ZstdError) as error:
        raise damaged(str(path), error) from error


@dataclass(frozen=True)
class _Layout:
    """Where the ids lie in each sample of a shard.

    Attributes:
        heads: sizes at the start of a sample.
        before: the columns before the ids: a fixed size, or the number of its head.
        own: the same for the ids.
        encoding: ``bytes``, ``json`` or ``ndarray``.
        dtype: of the values; None: each array names its own.
        shaped: each array names its shape.
    """

    heads: int
    before: list[tuple[int | None, int]]
    own: tuple[int | None, int]
    encoding: str
    dtype: np.dtype[np.integer] | None
    shaped: bool

    @classmethod
    def of(cls, shard: dict[str, Any], path: Path, reading: Reading) -> _Layout:
        """The layout of a shard that the index describes like this."""
        names: list[str] = shard["column_names"]
        sizes: list[int | None] = [size or None for size in shard["column_sizes"]]
        usual = [name for name in mds.USUAL_COLUMNS if name in names]
        column = reading.column or (usual[0] if usual else None)
        if column not in names:
            raise DataError(f"{path}: no column of ids among {', '.join(names)}; name one with --column")
        places = [(size, sum(other is None for other in sizes[:at])) for at, size in enumerate(sizes)]
        at = names.index(column)
        kind, _, rest = shard["column_encodings"][at].partition(":")
        dtype, _, shape = rest.partition(":")
        if kind not in {"bytes", "ndarray", "json"} or dtype not in {"", *mds.VALUE_TYPES.values()} or "," in shape:
            raise DataError(
                f"{path}: column {column!r} has the encoding {shard['column_encodings'][at]!r}, which holds no row of "
                "token ids; name another one with --column"
            )
        values = reading.dtype or _BYTES_DTYPE if kind == "bytes" else np.dtype(dtype) if dtype else None
        heads = sum(size is None for size in sizes)
        return cls(heads, places[:at], places[at], kind, values, kind == "ndarray" and not shape)

    def ids(self, sample: NDArray[np.uint8]) -> NDArray[np.integer]:
        """The ids of one sample, [tokens]."""
        sizes = sample[: 4 * self.heads].view("<u4").tolist()
        begin = 4 * self.heads + sum(sizes[head] if size is None else size for size, head in self.before)
        size, head = self.own
        value = sample[begin : begin + (sizes[head] if size is None else size)]
        if self.encoding == "json":
            return np.array(json.loads(bytes(value)), dtype=np.int64)
        dtype = self.dtype
        if dtype is None:
            dtype, value = np.dtype(mds.VALUE_TYPES[int(value[0])]), value[1:]
        if self.shaped:
            if value[0] >> 2 != 1:
                raise ValueError(f"a sample of {value[0] >> 2} dimensions instead of a row of ids")
            value = value[1 + (1 << (value[0] & 3)) :]
        return value.view(dtype)
