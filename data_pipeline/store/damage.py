"""Where a shard file that has just arrived is not what the manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shards import format as fmt
from data_pipeline.shards.archive import frames
from data_pipeline.shards.blocks import HASH_BLOCK, HASH_DTYPE, block_hashes, first_blocks
from data_pipeline.shards.manifest import ShardEntry


@dataclass(frozen=True)
class Damage:
    """A range of a shard file that cannot be right.

    Attributes:
        begin: first byte.
        end: byte after the last.
        what: the member and its hashes, for messages.
    """

    begin: int
    end: int
    what: str


def damages(path: Path, entry: ShardEntry) -> list[Damage]:
    """The damaged ranges of a file of the right size; empty if it is the very file that was written.

    With whole ``hashes.bin``, ranges of members are blocks of 64 KiB; without, whole members.
    """
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    return [*_frame_damages(data, entry), *_member_damages(data, entry)]


def _frame_damages(data: NDArray[np.uint8], entry: ShardEntry) -> Iterator[Damage]:
    for frame in frames(entry.key, entry.sizes):
        end = frame.begin + len(frame.content)
        if data[frame.begin : end].tobytes() != frame.content:
            yield Damage(frame.begin, end, f"the {frame.part} is wrong")


def _member_damages(data: NDArray[np.uint8], entry: ShardEntry) -> list[Damage]:
    wrong = {}
    for name, place in entry.members.items():
        found = xxhash.xxh3_64_hexdigest(_member(data, entry, name).data)
        if found != place.xxh3:
            wrong[name] = f"member {entry.key}.{name} has the hash {found}, {place.xxh3} expected"
    if fmt.HASHES in wrong:
        places = {name: entry.members[name] for name in wrong}
        return [Damage(place.offset, place.offset + place.size, wrong[name]) for name, place in places.items()]
    return [damage for name, what in wrong.items() for damage in _blocks(data, entry, name, what)]


def _blocks(data: NDArray[np.uint8], entry: ShardEntry, name: str, what: str) -> Iterator[Damage]:
    place = entry.members[name]
    hashes = block_hashes(_member(data, entry, name))
    first = first_blocks(entry.sizes)[name]
    expected = _member(data, entry, fmt.HASHES).view(HASH_DTYPE)[first : first + hashes.size]
    for block in np.flatnonzero(hashes != expected).tolist():
        begin = block * HASH_BLOCK
        yield Damage(place.offset + begin, place.offset + min(begin + HASH_BLOCK, place.size), what)


def _member(data: NDArray[np.uint8], entry: ShardEntry, name: str) -> NDArray[np.uint8]:
    place = entry.members[name]
    return data[place.offset : place.offset + place.size]
