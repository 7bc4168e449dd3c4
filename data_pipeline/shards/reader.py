"""Random access to the tokens of a data set: one long row of ids, read where they lie on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import format as fmt
from data_pipeline.shards.files import LocalFiles, MemberFiles, ShardFiles
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.open_shard import OpenShard
from data_pipeline.shards.open_shards import OpenShards
from data_pipeline.shards.structure import Structure


class ShardSet:
    """All shards of a data set as one row of tokens, with the positions at which documents, sentences and words start.

    Files are asked for and mapped when they are first read, in each process for itself: a set can be pickled and
    forked freely, and holds a few numbers for each shard in memory. A block of 64 KiB is checked against its hash
    when a process first reads it.

    Attributes:
        files: where the shards come from.
        manifest: what they are.
    """

    def __init__(self, files: ShardFiles, manifest: Manifest, quarantined: Collection[int] = ()) -> None:
        self.files = files
        self.manifest = manifest
        self._ends = np.cumsum([shard.tokens for shard in manifest.shards], dtype=np.int64)
        self._begins = self._ends - np.array([shard.tokens for shard in manifest.shards], dtype=np.int64)
        self._shards = OpenShards(files, manifest, quarantined)

    @classmethod
    def open(cls, location: Path | str | ShardFiles) -> ShardSet:
        """Open a data set; of the shards, nothing is read.

        Args:
            location: a folder, of which every file's size is checked here, or files that are asked for one by one
                when they are first read.

        Raises:
            DataError: the manifest is missing or damaged; names the file and what is wrong.
            BrokenShard: a shard of a folder is missing or has another size.
        """
        files = LocalFiles(Path(location)) if isinstance(location, str | Path) else location
        manifest = Manifest.parse(files.manifest_text(), files.location)
        if isinstance(location, str | Path):
            for shard in manifest.shards:
                files.local_path(shard)
        return cls(files, manifest)

    @property
    def location(self) -> str:
        """Folder or URL of the set, for messages."""
        return self.files.location

    @property
    def shard_starts(self) -> NDArray[np.int64]:
        """Position of each shard's first token in the whole set, [shards], int64."""
        return self._begins

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards."""
        return int(self._ends[-1])

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def num_sentences(self) -> int:
        """Sentences of all shards; as many as documents if nobody looked for sentences."""
        sizes = (shard.members[fmt.SENTENCES].size for shard in self.manifest.shards)
        return sum(size // fmt.SENTENCE_DTYPE.itemsize - 1 for size in sizes)

    @property
    def fingerprint(self) -> str:
        """Equal for equal data only; a checkpoint remembers it."""
        return self.manifest.fingerprint

    @property
    def tokenizer(self) -> fmt.TokenizerIdentity:
        """The tokenizer that made the tokens."""
        return self.manifest.tokenizer

    def set_quarantined(self, names: Collection[str]) -> None:
        """Refuse to read the tokens of these shards from now on, whatever is in their files.

        What says where things start can still be read, so that sample indexes stay what they are.

        Args:
            names: file names of shards, all of them; those of other sets mean nothing here.
        """
        self._shards.quarantined = frozenset(
            number for number, shard in enumerate(self.manifest.shards) if shard.name in names
        )

    def shards_of(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """The numbers of the shards that hold the tokens of each window [begin, end), ascending; none of an empty one.

        Args:
            begins: first position of each window in the whole set, [n].
            ends: position behind its last, [n].
        """
        first = np.searchsorted(self._ends, begins, side="right")
        last = np.where(begins < ends, np.searchsorted(self._begins, ends, side="left"), first)
        return [tuple(range(low, high)) for low, high in zip(first.tolist(), last.tolist(), strict=True)]

    def rows(self, begins: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Token ids of the windows [begin, begin + length), [n, length], int64.

        Args:
            begins: first position of each window in the whole set, [n], in any order.
            length: tokens of every window.

        Raises:
            IndexError: a window does not lie within the set.
            BrokenShard: a shard is missing, damaged or in quarantine.
        """
        result = np.empty((begins.size, length), dtype=np.int64)
        if result.size == 0:
            return result
        self._checked_range(int(begins.min()), int(begins.max()) + length)
        order = np.argsort(begins)  # each shard is opened once, and read in the order of the file
        sorted_begins = begins[order]
        numbers = np.searchsorted(self._ends, sorted_begins, side="right")
        firsts = sorted_begins - self._begins[numbers]
        current, shard = int(numbers[0]), self._shards.text(int(numbers[0]))
        for row, number, first in zip(order.tolist(), numbers.tolist(), firsts.tolist(), strict=True):
            if number != current:
                current, shard = number, self._shards.text(number)
            if first + length <= shard.num_tokens:
                result[row] = shard.tokens(first, first + length)
            else:
                self._copy(int(begins[row]), result[row])
        return result

    def tokens(self, begin: int, end: int) -> NDArray[np.int64]:
        """Token ids at the positions [begin, end) of the whole set, [end - begin], int64, a copy.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            BrokenShard: a shard is missing, damaged or in quarantine.
        """
        result = np.empty(self._checked_range(begin, end), dtype=np.int64)
        if result.size:
            self._copy(begin, result)
        return result

    def document_starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """The positions in [begin, end) of the whole set at which a document starts, ascending, int64.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            BrokenShard: a shard is missing, damaged or in quarantine.
        """
        return self._starts(begin, end, OpenShard.document_offsets)

    def sentence_starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """The positions in [begin, end) of the whole set at which a sentence starts, ascending, int64.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            BrokenShard: a shard is missing, damaged or in quarantine.
        """
        return self._starts(begin, end, OpenShard.sentence_offsets)

    def word_starts(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens [begin, end) of the whole set start a word, [end - begin], a copy.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            BrokenShard: a shard is missing, damaged or in quarantine.
        """
        self._checked_range(begin, end)
        found = [np.empty(0, dtype=np.bool_)]
        found += [
            self._shards.text(number).word_starts(first, last) for number, first, last in self._pieces(begin, end)
        ]
        return np.concatenate(found)

    def structures(self) -> Iterator[Structure]:
        """Where things start in each shard, shard by shard; no text is read, nor fetched if the files can do that.

        Raises:
            BrokenShard: a shard is missing or damaged.
        """
        for number, entry in enumerate(self.manifest.shards):
            first_token = int(self._begins[number])
            if number not in self._shards and isinstance(self.files, MemberFiles):
                yield Structure.fetched(first_token, entry, self.files)
            else:
                yield Structure.of_shard(first_token, self._shards.get(number))

    def document_offsets(self, number: int) -> NDArray[np.int64]:
        """Where each document of one shard starts in it, then its number of tokens, [documents + 1], int64.

        Raises:
            BrokenShard: the shard is missing or damaged.
        """
        return self._shards.get(number).document_offsets()

    def origins(self, number: int) -> NDArray[np.uint32]:
        """Of each document of one shard, the number of its source file in the manifest's list, [documents], uint32.

        Raises:
            BrokenShard: the shard is missing or damaged.
        """
        return self._shards.get(number).origins()

    def infos(self, number: int) -> Iterator[dict[str, Any]]:
        """What else was stored with each document of one shard, JSON values by name, in the order of the documents.

        Raises:
            BrokenShard: the shard is missing or damaged.
        """
        return self._shards.get(number).infos()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "manifest": self.manifest, "quarantined": self._shards.quarantined}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardSet.__init__(self, **state)

    def _starts(self, begin: int, end: int, offsets: Callable[[OpenShard], NDArray[np.integer]]) -> NDArray[np.int64]:
        """The offsets of shards that lie in [begin, end), counted from the first token of the set."""
        self._checked_range(begin, end)
        found = [np.empty(0, dtype=np.int64)]
        for number, first, last in self._pieces(begin, end):
            found.append(_between(offsets(self._shards.text(number)), first, last) + self._begins[number])
        return np.concatenate(found)

    def _checked_range(self, begin: int, end: int) -> int:
        if not 0 <= begin <= end <= self.num_tokens:
            raise IndexError(f"tokens [{begin}, {end}) of {self.num_tokens}")
        return end - begin

    def _copy(self, begin: int, result: NDArray[np.int64]) -> None:
        """Fill `result`, of at least one token, with those from `begin` on."""
        number = int(self._ends.searchsorted(begin, side="right"))
        first = begin - int(self._begins[number])
        shard = self._shards.text(number)
        while first + result.size > shard.num_tokens:
            filled = shard.num_tokens - first
            result[:filled] = shard.tokens(first, shard.num_tokens)
            number, first, result = number + 1, 0, result[filled:]
            shard = self._shards.text(number)
        result[:] = shard.tokens(first, first + result.size)

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """The parts of [begin, end): shard number, first and last position in it."""
        pieces = []
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            base = int(self._begins[number])
            last = min(end, int(self._ends[number]))
            pieces.append((number, begin - base, last - base))
            begin = last
            number += 1
        return pieces


def _between(offsets: NDArray[np.integer], first: int, last: int) -> NDArray[np.integer]:
    """The offsets in [first, last), without the closing one."""
    # Keys of another integer type would make numpy convert, and so read, all offsets.
    low, high = np.searchsorted(offsets[:-1], np.array([first, last], dtype=offsets.dtype))
    return offsets[low:high]
