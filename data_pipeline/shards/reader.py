"""Random access to the tokens of a data set: one long row of ids, read where they lie on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.shards import format as fmt
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.open_shard import OpenShard, size_problem

_MAX_OPEN = 256
"""Shards mapped at one time by one process; each takes a file descriptor, of which there are often 1024."""


@dataclass(frozen=True)
class Structure:
    """Where things start in one shard; positions count from its first token.

    Attributes:
        first_token: position of the shard's first token in the whole set.
        documents: where each document starts, then the number of tokens, [documents + 1], int64.
        sentences: where each sentence starts, then the number of tokens, [sentences + 1], int32.
        word_start_bits: one bit for each token, the lowest of a byte first, [ceil(tokens / 8)], uint8.
    """

    first_token: int
    documents: NDArray[np.int64]
    sentences: NDArray[np.int32]
    word_start_bits: NDArray[np.uint8]

    def starts_word(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a word starts at each position, any shape, bool."""
        bits: NDArray[np.int64] = self.word_start_bits[positions >> 3] >> (positions & 7)
        return np.bitwise_and(bits, 1).astype(np.bool_)


class ShardSet:
    """All shards of a folder as one row of tokens, with the positions at which documents, sentences and words start.

    Files are mapped when they are first read, in each process for itself: a set can be pickled and forked
    freely, and holds a few numbers for each shard in memory.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._ends = np.cumsum([shard.tokens for shard in manifest.shards], dtype=np.int64)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._verified: set[tuple[int, str]] = set()

    @classmethod
    def open(cls, directory: Path) -> ShardSet:
        """Open the shards of a folder; every file's size is checked here, its hashes when it is first read.

        Raises:
            DataError: the manifest or a shard is missing or damaged; names the file and what is wrong.
        """
        manifest = Manifest.load(directory)
        for shard in manifest.shards:
            problem = size_problem(directory, shard)
            if problem:
                raise DataError(problem)
        return cls(directory, manifest)

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

    def tokens(self, begin: int, end: int) -> NDArray[np.int64]:
        """Token ids at the positions [begin, end) of the whole set, [end - begin], int64, a copy.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            DataError: a shard is missing or damaged.
        """
        result = np.empty(self._checked(begin, end), dtype=np.int64)
        for number, first, last, base in self._pieces(begin, end):
            piece = self._shard(number).tokens[first:last]
            result[base + first - begin : base + last - begin] = piece
        return result

    def document_starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """The positions in [begin, end) of the whole set at which a document starts, ascending, int64.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            DataError: a shard is missing or damaged.
        """
        return self._starts(begin, end, lambda shard: shard.document_offsets)

    def sentence_starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """The positions in [begin, end) of the whole set at which a sentence starts, ascending, int64.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            DataError: a shard is missing or damaged.
        """
        return self._starts(begin, end, lambda shard: shard.sentence_offsets)

    def word_starts(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens [begin, end) of the whole set start a word, [end - begin], a copy.

        Raises:
            IndexError: not 0 <= begin <= end <= num_tokens.
            DataError: a shard is missing or damaged.
        """
        self._checked(begin, end)
        found = [np.empty(0, dtype=np.bool_)]
        found += [self._shard(number).word_starts(first, last) for number, first, last, _ in self._pieces(begin, end)]
        return np.concatenate(found)

    def structures(self) -> Iterator[Structure]:
        """Where things start in each shard, shard by shard; no text is read.

        Raises:
            DataError: a shard is missing or damaged.
        """
        for number, entry in enumerate(self.manifest.shards):
            shard = self._shard(number, fmt.STRUCTURE)
            first_token = int(self._ends[number]) - entry.tokens
            yield Structure(first_token, shard.document_offsets, shard.sentence_offsets, shard.member(fmt.WORD_STARTS))

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardSet.__init__(self, state["directory"], state["manifest"])

    def _starts(self, begin: int, end: int, offsets: Callable[[OpenShard], NDArray[np.integer]]) -> NDArray[np.int64]:
        """The offsets of shards that lie in [begin, end), counted from the first token of the set."""
        self._checked(begin, end)
        found = [np.empty(0, dtype=np.int64)]
        for number, first, last, base in self._pieces(begin, end):
            found.append(_between(offsets(self._shard(number)), first, last) + np.int64(base))
        return np.concatenate(found)

    def _checked(self, begin: int, end: int) -> int:
        if not 0 <= begin <= end <= self.num_tokens:
            raise IndexError(f"tokens [{begin}, {end}) of {self.num_tokens}")
        return end - begin

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int, int, int]]:
        """The parts of [begin, end): shard number, first and last position in it, its own first position."""
        pieces = []
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            base = int(self._ends[number]) - self.manifest.shards[number].tokens
            last = min(end, int(self._ends[number]))
            pieces.append((number, begin - base, last - base, base))
            begin = last
            number += 1
        return pieces

    def _shard(self, number: int, members: Sequence[str] = fmt.MEMBERS) -> OpenShard:
        """A shard of which `members` have been found whole."""
        shard = self._open.get(number)
        if shard is None:
            shard = OpenShard(self.directory, self.manifest.shards[number], self.manifest.token_dtype)
        unverified = [name for name in members if (number, name) not in self._verified]
        for problem in shard.damaged_members(unverified):
            raise DataError(problem)
        self._verified.update((number, name) for name in unverified)
        self._open[number] = shard
        self._open.move_to_end(number)
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return shard


def _between(offsets: NDArray[np.integer], first: int, last: int) -> NDArray[np.integer]:
    """The offsets in [first, last), without the closing one."""
    # Keys of another integer type would make numpy convert, and so read, all offsets.
    low, high = np.searchsorted(offsets[:-1], np.array([first, last], dtype=offsets.dtype))
    return offsets[low:high]
