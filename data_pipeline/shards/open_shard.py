"""One shard file, mapped into memory; every block of it is checked before the first reader sees it."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shards import format as fmt
from data_pipeline.shards.blocks import HASH_BLOCK, HASH_DTYPE, blocks_of, first_blocks
from data_pipeline.shards.errors import BrokenShard, Damage
from data_pipeline.shards.files import check_size
from data_pipeline.shards.manifest import ShardEntry


class CheckedBlocks:
    """Which blocks of a file were found whole; outlives the map, but not the file.

    Attributes:
        file: what tells a file from one that took its place: device, inode and time of change.
        flags: one byte for each block, 1 if it is whole.
    """

    def __init__(self, file: tuple[int, int, int], blocks: int) -> None:
        self.file = file
        self.flags = bytearray(blocks)


class OpenShard:
    """The arrays of a shard, read where they lie.

    Attributes:
        path: of the file.
        num_tokens: how many it holds.
        checked: what was found whole so far; give it to the next map of the same shard.

    Args:
        path: a file of the right size.
        entry: what the manifest says about it.
        dtype: stored type of the tokens.
        checked: what an earlier map of the shard left, or None.

    Raises:
        BrokenShard: the file cannot be mapped, has another size, or the list of hashes is damaged.
    """

    def __init__(
        self,
        path: Path,
        entry: ShardEntry,
        dtype: np.dtype[np.unsignedinteger],
        checked: CheckedBlocks | None = None,
    ) -> None:
        self.path = path
        self._entry = entry
        self.num_tokens = entry.tokens
        self._bytes, file = _map(path, entry)
        self._first_blocks = first_blocks({name: size for name, size in entry.sizes.items() if name != fmt.HASHES})
        self._hashes: NDArray[np.uint64] = self.unchecked(fmt.HASHES).view(HASH_DTYPE)
        if checked is None or checked.file != file:
            self._check_hashes()
            checked = CheckedBlocks(file, self._hashes.size)
        self.checked = checked
        self._flags = checked.flags
        self._tokens: NDArray[np.unsignedinteger] = self.unchecked(fmt.TOKENS).view(dtype)
        self._token_bytes = dtype.itemsize
        self._token_block = self._first_blocks[fmt.TOKENS]

    def tokens(self, begin: int, end: int) -> NDArray[np.unsignedinteger]:
        """The stored ids [begin, end), begin < end, [end - begin], u16 or u32, no copy.

        Raises: BrokenShard if a block of them is damaged.
        """
        low = self._token_block + begin * self._token_bytes // HASH_BLOCK
        high = self._token_block + (end * self._token_bytes - 1) // HASH_BLOCK + 1
        if self._flags.find(0, low, high) >= 0:
            self._check(fmt.TOKENS, low - self._token_block, high - self._token_block)
        return self._tokens[begin:end]

    def document_offsets(self) -> NDArray[np.int64]:
        """Where each document starts, then the number of tokens, [documents + 1], int64, no copy."""
        return self.member(fmt.DOCUMENTS).view(fmt.DOCUMENT_DTYPE)

    def sentence_offsets(self) -> NDArray[np.int32]:
        """Where each sentence starts, then the number of tokens, [sentences + 1], int32, no copy."""
        return self.member(fmt.SENTENCES).view(fmt.SENTENCE_DTYPE)

    def origins(self) -> NDArray[np.uint32]:
        """Number of the source file of each document, [documents], uint32, no copy."""
        return self.member(fmt.ORIGINS).view(fmt.ORIGIN_DTYPE)

    def infos(self) -> Iterator[dict[str, Any]]:
        """What else is known about each document, in order; empty for all if nothing was stored."""
        if fmt.INFO not in self._entry.members:
            yield from ({} for _ in range(self._entry.documents))
            return
        for line in self.member(fmt.INFO).tobytes().splitlines():
            yield json.loads(line)

    def word_starts(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens [begin, end), begin < end, start a word, [end - begin], a copy."""
        first, last = begin // 8, (end + 7) // 8
        self._check(fmt.WORD_STARTS, first // HASH_BLOCK, blocks_of(last))
        bits = np.unpackbits(self.unchecked(fmt.WORD_STARTS)[first:last], count=end - 8 * first, bitorder="little")
        return bits[begin - 8 * first :].view(np.bool_)

    def member(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one member, all of them checked.

        Raises: BrokenShard if a block is damaged.
        """
        if name != fmt.HASHES:
            self._check(name, 0, blocks_of(self._entry.members[name].size))
        return self.unchecked(name)

    def unchecked(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one member as they lie in the file."""
        place = self._entry.members[name]
        return self._bytes[place.offset : place.offset + place.size]

    def _check(self, name: str, low: int, high: int) -> None:
        """Check those of the member's blocks [low, high) that nobody has checked."""
        first = self._first_blocks[name]
        block = self._flags.find(0, first + low, first + high)
        while block >= 0:
            if not self._is_whole(name, block - first):
                raise self._broken(name, (block - first) * HASH_BLOCK, HASH_BLOCK)
            self._flags[block] = 1
            block = self._flags.find(0, block + 1, first + high)

    def _is_whole(self, name: str, block: int) -> bool:
        data = self.unchecked(name)[block * HASH_BLOCK : (block + 1) * HASH_BLOCK]
        return xxhash.xxh3_64_intdigest(data.data) == int(self._hashes[self._first_blocks[name] + block])

    def _check_hashes(self) -> None:
        expected = self._entry.members[fmt.HASHES]
        if xxhash.xxh3_64_hexdigest(self.unchecked(fmt.HASHES).data) != expected.xxh3:
            raise self._broken(fmt.HASHES, 0, expected.size)

    def _broken(self, name: str, begin: int, size: int) -> BrokenShard:
        """The error of the bytes [begin, begin + size) of a member, as far as it has them."""
        place = self._entry.members[name]
        end = min(begin + size, place.size)
        damage = Damage.of_member(str(self.path), self._entry.key, name, place.offset + begin, place.offset + end)
        return BrokenShard(self._entry.name, str(damage))


def _map(path: Path, entry: ShardEntry) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """All bytes of a file, and which file it is."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            check_size(path, status.st_size, entry)
            # A plain array over the map: slicing np.memmap costs several times more.
            data = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise BrokenShard(
            entry.name, f"cannot read shard {path}: {error.strerror}; check its rights and `ulimit -n`"
        ) from error
    return data, (status.st_dev, status.st_ino, status.st_mtime_ns)
