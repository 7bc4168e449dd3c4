"""The full check of one shard file. It is read, not mapped, so that a bad disk is reported and not crashed on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shards import format as fmt
from data_pipeline.shards.archive import frames
from data_pipeline.shards.blocks import HASH_BLOCK, HASH_DTYPE, block_hashes
from data_pipeline.shards.errors import ADVICE, BrokenShard, Damage
from data_pipeline.shards.files import LocalFiles
from data_pipeline.shards.manifest import ShardEntry

_CHUNK = 64 * HASH_BLOCK


@dataclass(frozen=True)
class ShardTask:
    """What is to be checked.

    Attributes:
        path: the file.
        entry: what the manifest says about it.
        dtype: stored type of the tokens.
        vocab_size: ids are below it.
        num_sources: numbers of source files are below it; None if the manifest does not list them.
    """

    path: Path
    entry: ShardEntry
    dtype: np.dtype[np.unsignedinteger]
    vocab_size: int
    num_sources: int | None


def check_shard(task: ShardTask) -> list[Damage]:
    """Everything that is wrong with a shard; its bytes first, and only if they are right, their sense."""
    file = str(task.path)
    try:
        LocalFiles(task.path.parent).local_path(task.entry)
        with _File(task.path, task.entry) as shard:
            return shard.damage() or list(shard.nonsense(task))
    except BrokenShard as error:
        return [Damage.of_file(file, str(error))]
    except OSError as error:
        return [
            Damage.of_file(file, f"cannot read shard {file}: {error.strerror}; check the disk and the rights; {ADVICE}")
        ]


def damaged_bytes(path: Path, entry: ShardEntry) -> list[Damage]:
    """All bytes of a shard file of the right size that are not as they were written, in blocks or to the byte.

    Raises:
        OSError: the file cannot be read.
    """
    with _File(path, entry) as shard:
        return shard.damage()


class _File:
    """A shard file of the right size that is read front to back."""

    def __init__(self, path: Path, entry: ShardEntry) -> None:
        self._name = str(path)
        self._entry = entry
        self._descriptor = os.open(path, os.O_RDONLY)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def damage(self) -> list[Damage]:
        """All bytes that are not as they were written."""
        return [*self._frame_damage(), *self._member_damage()]

    def _frame_damage(self) -> Iterator[Damage]:
        """Headers and padding that are not what the format puts there, to the byte."""
        what = "not what the format puts there"
        for frame in frames(self._entry.key, self._entry.sizes):
            found = self._read(frame.begin, len(frame.content))
            wrong = np.flatnonzero(found != np.frombuffer(frame.content, np.uint8)) + frame.begin
            for begin, end in _stretches(wrong):
                yield Damage.of_bytes(self._name, frame.part, frame.member, begin, end, what)

    def _member_damage(self) -> Iterator[Damage]:
        """Blocks of members that do not have their hash."""
        place = self._entry.members[fmt.HASHES]
        stored = self._read(place.offset, place.size)
        names = [name for name in self._entry.sizes if name != fmt.HASHES]
        if xxhash.xxh3_64_hexdigest(stored.data) == place.xxh3:
            expected = stored.view(HASH_DTYPE)
            for name in names:
                found = self._block_hashes(name)
                wrong = np.flatnonzero(found != expected[: found.size])
                expected = expected[found.size :]
                yield from (self._block(name, int(block)) for block in wrong)
            return
        yield from self._damage_of_hashes(names, stored)

    def _damage_of_hashes(self, names: list[str], stored: NDArray[np.uint8]) -> Iterator[Damage]:
        """Where the list of hashes is wrong, told from the members, and which of those are wrong as a whole."""
        entry = self._entry
        right = []
        for name in names:
            place = entry.members[name]
            digest = xxhash.xxh3_64()
            for chunk in self._chunks(name):
                digest.update(chunk.data)
            if digest.hexdigest() != place.xxh3:
                yield self._bytes(name, 0, place.size)
            right.append(self._block_hashes(name))
        wrong = np.flatnonzero(stored != np.concatenate(right).view(np.uint8))
        for first, last in _stretches(wrong):
            yield self._bytes(fmt.HASHES, first, last)

    def nonsense(self, task: ShardTask) -> Iterator[Damage]:
        """What cannot be right although it has the right hashes."""
        entry = self._entry
        documents = self._member(fmt.DOCUMENTS).view(fmt.DOCUMENT_DTYPE)
        sentences = self._member(fmt.SENTENCES).view(fmt.SENTENCE_DTYPE)
        if not _are_offsets(documents, entry.documents, entry.tokens):
            yield self._about(fmt.DOCUMENTS, f"the document offsets are not those of {entry.documents} documents")
        if not _are_offsets(sentences, sentences.size - 1, entry.tokens):
            yield self._about(fmt.SENTENCES, f"the sentence offsets do not cover its {entry.tokens} tokens")
        highest = max(int(chunk.view(task.dtype).max()) for chunk in self._chunks(fmt.TOKENS))
        if highest >= task.vocab_size:
            yield self._about(fmt.TOKENS, f"token id {highest} in a vocabulary of {task.vocab_size}")
        origin = int(self._member(fmt.ORIGINS).view(fmt.ORIGIN_DTYPE).max())
        if task.num_sources is not None and origin >= task.num_sources:
            yield self._about(fmt.ORIGINS, f"a document of source file number {origin} of {task.num_sources}")
        meta = fmt.meta(task.dtype, entry.tokens, entry.documents, sentences.size - 1)
        if self._member(fmt.META).tobytes() != meta:
            yield self._about(fmt.META, f"it does not say {meta.decode()}")
        if fmt.INFO in entry.members:
            lines = sum(int((chunk == ord("\n")).sum()) for chunk in self._chunks(fmt.INFO))
            if lines != entry.documents:
                yield self._about(fmt.INFO, f"{lines} lines for {entry.documents} documents")

    def _about(self, name: str, what: str) -> Damage:
        message = f"shard {self._name}: {self._entry.key}.{name}: {what}; build the data again"
        return Damage(self._name, message, what, name)

    def _block(self, name: str, block: int) -> Damage:
        begin = block * HASH_BLOCK
        return self._bytes(name, begin, min(begin + HASH_BLOCK, self._entry.members[name].size))

    def _bytes(self, name: str, begin: int, end: int) -> Damage:
        offset = self._entry.members[name].offset
        return Damage.of_member(self._name, self._entry.key, name, offset + begin, offset + end)

    def _block_hashes(self, name: str) -> NDArray[np.uint64]:
        return np.concatenate([np.empty(0, HASH_DTYPE), *(block_hashes(chunk) for chunk in self._chunks(name))])

    def _member(self, name: str) -> NDArray[np.uint8]:
        place = self._entry.members[name]
        return self._read(place.offset, place.size)

    def _chunks(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a member, in pieces of whole blocks."""
        place = self._entry.members[name]
        for begin in range(0, place.size, _CHUNK):
            yield self._read(place.offset + begin, min(_CHUNK, place.size - begin))

    def _read(self, begin: int, size: int) -> NDArray[np.uint8]:
        parts = []
        while size:
            part = os.pread(self._descriptor, size, begin)
            if not part:
                raise OSError(0, "the file ends too early")
            parts.append(part)
            begin += len(part)
            size -= len(part)
        return np.frombuffer(b"".join(parts), np.uint8)


def _stretches(positions: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending positions as stretches [begin, end) of neighbours."""
    if positions.size == 0:
        return []
    cuts = np.flatnonzero(np.diff(positions) != 1)
    begins = positions[np.append(0, cuts + 1)].tolist()
    ends = (positions[np.append(cuts, positions.size - 1)] + 1).tolist()
    return list(zip(begins, ends, strict=True))


def _are_offsets(offsets: NDArray[np.integer], count: int, end: int) -> bool:
    """Whether `offsets` starts `count` pieces that are not empty and fill [0, end)."""
    if offsets.size != count + 1 or count < 1:
        return False
    return bool(offsets[0] == 0 and offsets[-1] == end and (offsets[1:] > offsets[:-1]).all())
