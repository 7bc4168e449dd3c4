"""One shard file, mapped into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.shards import format as fmt
from data_pipeline.shards.manifest import ShardEntry


def size_problem(directory: Path, entry: ShardEntry) -> str | None:
    """What is wrong with a shard's file as seen from outside, in one sentence, or None.

    A file cut short would end a process that reads its map with a bus error, hence this look before mapping.
    """
    path = directory / entry.name
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"shard {path} is missing ({entry.bytes} bytes expected); copy it again or build the data again"
    except OSError as error:
        return f"cannot read shard {path}: {error.strerror}; check the disk and the rights, or copy it again"
    if found != entry.bytes:
        return (
            f"shard {path} is damaged: it has {found} bytes, {entry.bytes} expected; "
            "copy it again or build the data again"
        )
    return None


class OpenShard:
    """The arrays of a shard, read where they lie.

    Attributes:
        tokens: ids of all documents, [tokens], u16 or u32.
        document_offsets: where each document starts, then the number of tokens, [documents + 1], int64.
        sentence_offsets: where each sentence starts, then the number of tokens, [sentences + 1], int32.

    Raises:
        DataError: the file is missing, unreadable or of another size than the manifest says.
    """

    def __init__(self, directory: Path, entry: ShardEntry, dtype: np.dtype[np.unsignedinteger]) -> None:
        problem = size_problem(directory, entry)
        if problem:
            raise DataError(problem)
        self._path = directory / entry.name
        self._entry = entry
        try:
            # A plain array over the map: slicing np.memmap itself costs several times more.
            self._bytes: NDArray[np.uint8] = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))
        except OSError as error:
            raise DataError(
                f"cannot read shard {self._path}: {error.strerror}; check its rights and `ulimit -n`"
            ) from error
        self.tokens: NDArray[np.unsignedinteger] = self.member(fmt.TOKENS).view(dtype)
        self.document_offsets: NDArray[np.int64] = self.member(fmt.DOCUMENTS).view(fmt.DOCUMENT_DTYPE)
        self.sentence_offsets: NDArray[np.int32] = self.member(fmt.SENTENCES).view(fmt.SENTENCE_DTYPE)

    def word_starts(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens [begin, end) start a word, [end - begin], a copy."""
        first = begin // 8
        data = self.member(fmt.WORD_STARTS)[first : (end + 7) // 8]
        bits = np.unpackbits(data, count=end - 8 * first, bitorder="little")
        return bits[begin - 8 * first :].view(np.bool_)

    def member(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one member."""
        place = self._entry.members[name]
        return self._bytes[place.offset : place.offset + place.size]

    def damaged_members(self, names: Iterable[str] = fmt.MEMBERS) -> Iterator[str]:
        """One sentence for each of the members whose hash is not the one of the manifest."""
        for name in names:
            expected = self._entry.members[name].xxh3
            found = xxhash.xxh3_64_hexdigest(self.member(name).data)
            if found != expected:
                yield (
                    f"shard {self._path} is damaged: member {self._entry.key}.{name} has the hash {found}, "
                    f"{expected} expected; copy it again or build the data again"
                )
