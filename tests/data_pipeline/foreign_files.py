"""Files of other programs, made by hand from the descriptions of their formats, and documents to put into them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.shards import ShardSet

MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def random_documents(count: int, *, seed: int, vocab_size: int, end: int, mean: int = 40) -> list[list[int]]:
    """Documents of ids above the special ones, each ended."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(6, vocab_size, int(rng.geometric(1 / mean))).tolist(), end] for _ in range(count)]


def documents_in(shards: ShardSet) -> list[list[int]]:
    """The token ids of each document of a set."""
    starts = shards.document_starts(0, shards.num_tokens).tolist()
    bounds = zip(starts, [*starts[1:], shards.num_tokens], strict=True)
    return [shards.tokens(begin, end).tolist() for begin, end in bounds]


def write_megatron(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16") -> Path:
    """A pair of files: documents of sequences of ids; returns the index."""
    sequences = [sequence for document in documents for sequence in document]
    itemsize = np.dtype(dtype).itemsize
    prefix.with_name(f"{prefix.name}.bin").write_bytes(b"".join(np.array(s, dtype).tobytes() for s in sequences))
    places = [0]
    for sequence in sequences:
        places.append(places[-1] + len(sequence) * itemsize)
    bounds = [0]
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    index = prefix.with_name(f"{prefix.name}.idx")
    index.write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, MEGATRON_CODES[dtype], len(sequences), len(bounds))
        + struct.pack(f"<{len(sequences)}i", *map(len, sequences))
        + struct.pack(f"<{len(sequences)}q", *places[:-1])
        + struct.pack(f"<{len(bounds)}q", *bounds)
    )
    return index


def mds_shard(samples: Sequence[bytes], head: bytes) -> bytes:
    """A shard of encoded samples behind its configuration."""
    offsets = [4 + 4 * (len(samples) + 1) + len(head)]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
    return struct.pack(f"<I{len(offsets)}I", len(samples), *offsets) + head + b"".join(samples)


def write_mds(folder: Path, samples: Sequence[bytes], columns: dict[str, tuple[str, int | None]]) -> Path:
    """A data set of one shard; columns as name -> (encoding, fixed size); returns the folder."""
    folder.mkdir(parents=True)
    data = mds_shard(samples, b"{}")
    (folder / "shard.00000.mds").write_bytes(data)
    shard = {
        "column_encodings": [columns[name][0] for name in sorted(columns)],
        "column_names": sorted(columns),
        "column_sizes": [columns[name][1] for name in sorted(columns)],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}},
        "samples": len(samples),
        "size_limit": None,
        "version": 2,
        "zip_data": None,
    }
    (folder / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    return folder
