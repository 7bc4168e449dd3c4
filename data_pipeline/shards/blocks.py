"""Hashes of 64 KiB blocks: a reader checks what it reads, and damage is found where it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

HASH_BLOCK = 1 << 16
"""Bytes under one hash; the last block of a member is shorter."""

HASH_DTYPE = np.dtype("<u8")


def blocks_of(size: int) -> int:
    """Blocks of a member of `size` bytes."""
    return -(-size // HASH_BLOCK)


def first_blocks(sizes: Mapping[str, int]) -> dict[str, int]:
    """Number of each member's first block; every member starts a new block, in the order given."""
    firsts = {}
    count = 0
    for name, size in sizes.items():
        firsts[name] = count
        count += blocks_of(size)
    return firsts


def block_hashes(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """XXH3 (64 bits) of each block of a member, [blocks], uint64 little-endian."""
    view = data.data
    starts = range(0, len(view), HASH_BLOCK)
    return np.array([xxhash.xxh3_64_intdigest(view[start : start + HASH_BLOCK]) for start in starts], HASH_DTYPE)


class BlockHasher:
    """Hashes of a member that is written piece by piece."""

    def __init__(self) -> None:
        self._whole = xxhash.xxh3_64()
        self._block = xxhash.xxh3_64()
        self._filled = 0
        self._hashes: list[int] = []
        self.size = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        self.size += len(data)
        while len(data):
            part = data[: HASH_BLOCK - self._filled]
            self._block.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == HASH_BLOCK:
                self._close_block()

    def finish(self) -> tuple[str, list[int]]:
        """The hash of all bytes in hexadecimal digits, and those of the blocks."""
        if self._filled:
            self._close_block()
        return self._whole.hexdigest(), self._hashes

    def _close_block(self) -> None:
        self._hashes.append(self._block.intdigest())
        self._block.reset()
        self._filled = 0
