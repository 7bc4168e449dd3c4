"""Copies of the state in files of a memory disk, which outlive the processes of a run.

A snapshot is a file of values and, written last and in one piece, a file `<name>.json` that says what they are of, with
check sums of each box and of itself. Without it the values mean nothing.
"""

from __future__ import annotations

import json
import mmap
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

HEADER_SUFFIX = ".json"


@dataclass(frozen=True)
class SnapshotBox:
    """A box of a tensor, and the bytes of a snapshot's file that hold it.

    Attributes:
        name: canonical name of the tensor.
        offset: first index in each dimension.
        shape: of the box.
        global_shape: of the tensor.
        dtype: name of its number format.
        begin: first byte.
        size: in bytes.
        xxh3: of the bytes, in hex.
    """

    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    dtype: str
    begin: int
    size: int
    xxh3: str = ""


@dataclass(frozen=True)
class SnapshotHeader:
    """What a snapshot of one rank is of.

    Attributes:
        file: name of the file of values, beside this one.
        life: of the run, whose ranks took it together.
        step: optimizer steps done.
        total: bytes of the boxes of all ranks together.
        description: of the state, as a checkpoint's manifest has it, in JSON.
        boxes: that the rank copied.
    """

    file: str
    life: str
    step: int
    total: int
    description: str
    boxes: tuple[SnapshotBox, ...]

    def text(self) -> str:
        """Content of the header's file."""
        body = json.dumps(asdict(self))
        return json.dumps({"xxh3": xxhash.xxh3_128_hexdigest(body.encode()), "body": body})


def parse_header(text: str) -> SnapshotHeader | None:
    """The header that a text is; None if it is none, or not as it was written."""
    try:
        outer = json.loads(text)
        if xxhash.xxh3_128_hexdigest(outer["body"].encode()) != outer["xxh3"]:
            return None
        values = json.loads(outer["body"])
        return SnapshotHeader(**{**values, "boxes": tuple(_box(box) for box in values["boxes"])})
    except (ValueError, KeyError, TypeError):
        return None


def _box(values: dict[str, Any]) -> SnapshotBox:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return SnapshotBox(**fields)


def read_headers(folder: Path) -> Iterator[SnapshotHeader]:
    """The snapshots of a folder that are complete."""
    for path in sorted(folder.glob(f"*{HEADER_SUFFIX}")):
        try:
            header = parse_header(path.read_text(encoding="utf-8"))
            size = (folder / path.stem).stat().st_size
        except (OSError, UnicodeDecodeError):
            continue
        if header is not None and size >= max((box.begin + box.size for box in header.boxes), default=0):
            yield header


def begin(folder: Path, file: str) -> None:
    """From now on the values of a file mean nothing."""
    (folder / f"{file}{HEADER_SUFFIX}").unlink(missing_ok=True)


def seal(folder: Path, header: SnapshotHeader) -> None:
    """From now on they mean what the header says."""
    unfinished = folder / f".{uuid.uuid4().hex}"
    unfinished.write_text(header.text(), encoding="utf-8")
    unfinished.rename(folder / f"{header.file}{HEADER_SUFFIX}")


def hashed(header: SnapshotHeader, values: memoryview) -> SnapshotHeader:
    """A header with the check sums of its boxes."""
    boxes = tuple(replace(box, xxh3=_hash(values, box)) for box in header.boxes)
    return replace(header, boxes=boxes)


def damaged_boxes(folder: Path, header: SnapshotHeader) -> list[SnapshotBox]:
    """The boxes of a snapshot whose bytes are not those that were copied."""
    values = mapped(folder / header.file)
    return [box for box in header.boxes if _hash(values, box) != box.xxh3]


def mapped(path: Path) -> memoryview:
    """A file of values; nothing is read before it is looked at, and what is written to it stays here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) if size else b"")
    finally:
        os.close(descriptor)


def _hash(values: memoryview, box: SnapshotBox) -> str:
    return xxhash.xxh3_64_hexdigest(values[box.begin : box.begin + box.size])
