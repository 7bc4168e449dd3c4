"""MDS shards, byte for byte as MosaicML streaming's own writer makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.interop import mds
from data_pipeline.interop.block import TokenBlock
from data_pipeline.interop.options import Writing

_COLUMN = mds.USUAL_COLUMNS[0]
_HASH = "xxh3_64"
_MOST_BYTES = 1 << 32


def default_dtype(vocab_size: int) -> str:
    """The type that readers turn into tensors without asking, as LLM Foundry writes it."""
    return "int32" if vocab_size <= 1 << 31 else "int64"


def write(folder: Path, name: str, blocks: Iterable[TokenBlock], writing: Writing) -> None:
    """Write a folder ``NAME`` of shards with one column ``tokens``, a sample for each document.

    Args:
        folder: an existing folder.
        name: of the folder to make in it; ``StreamingDataset`` calls this the split.
        blocks: the documents, none of them empty; one shard is in memory.
        writing: `dtype` of the ids, and `file_bytes`: the limit of a shard.

    Raises: DataError if a document is empty or too large.
    """
    shards = _Shards(folder / name, writing)
    documents = 0
    for block in blocks:
        for row in block.rows():
            if row.size == 0:
                raise DataError(f"document {documents} is empty without its end, which MDS cannot hold; keep the ends")
            shards.add(_sample(row.astype(writing.dtype)))
            documents += 1
    shards.finish()


def _sample(row: NDArray[np.integer]) -> bytes:
    # Sizes of shapes are stored in 1, 2 or 4 bytes.
    code = 0 if row.size < 1 << 8 else 1 if row.size < 1 << 16 else 2
    value = bytes([1 << 2 | code]) + row.size.to_bytes(1 << code, "little") + row.tobytes()
    return len(value).to_bytes(4, "little") + value


class _Shards:
    """The folder, and the samples of the shard that is being filled."""

    def __init__(self, folder: Path, writing: Writing) -> None:
        folder.mkdir()
        self._folder = folder
        self._limit = min(writing.file_bytes, _MOST_BYTES - 1)
        self._config = {
            "version": mds.VERSION,
            "format": "mds",
            "compression": None,
            "hashes": [_HASH],
            "size_limit": self._limit,
            "column_names": [_COLUMN],
            "column_encodings": [f"ndarray:{writing.dtype.name}"],
            "column_sizes": [None],
        }
        self._head = json.dumps(self._config, sort_keys=True).encode()
        self._shards: list[dict[str, Any]] = []
        self._samples: list[bytes] = []
        self._bytes = 8 + len(self._head)

    def add(self, sample: bytes) -> None:
        """Add one sample, in a new shard if this one would grow over its limit."""
        size = len(sample) + 4
        if self._samples and self._bytes + size > self._limit:
            self._flush()
        if self._bytes + size >= _MOST_BYTES:
            raise DataError(f"a document of {size:,} bytes is too large for MDS, whose offsets have 32 bits")
        self._samples.append(sample)
        self._bytes += size

    def finish(self) -> None:
        """Write the last shard and the index."""
        if self._samples:
            self._flush()
        index = {"version": mds.VERSION, "shards": self._shards}
        (self._folder / mds.INDEX).write_text(json.dumps(index, sort_keys=True), encoding="utf-8")

    def _flush(self) -> None:
        count = len(self._samples)
        offsets = np.cumsum([4 + 4 * (count + 1) + len(self._head), *map(len, self._samples)]).astype("<u4")
        data = b"".join([count.to_bytes(4, "little"), offsets.tobytes(), self._head, *self._samples])
        name = f"shard.{len(self._shards):05d}.mds"
        (self._folder / name).write_bytes(data)
        hashes = {_HASH: xxhash.xxh3_64_hexdigest(data)}
        described = {"basename": name, "bytes": len(data), "hashes": hashes}
        self._shards.append({"samples": count, "raw_data": described, "zip_data": None, **self._config})
        self._samples, self._bytes = [], 8 + len(self._head)
