"""Many documents as one row of token ids: what every format is read into and written from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 1 << 18
"""Tokens of a block, more only where one document has more: small enough to stay in a core's cache."""

Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class TokenBlock:
    """Documents one after the other.

    Attributes:
        tokens: ids of all of them, [n], any integer dtype.
        offsets: where each document starts, then n; [documents + 1], int64, from 0. Equal ones bound an empty document.
        sentences: where each sentence starts, then n, [sentences + 1], int64; every document starts one. None: not
            known.
    """

    tokens: NDArray[np.integer]
    offsets: Offsets
    sentences: Offsets | None = None

    @property
    def documents(self) -> int:
        """How many documents the block holds."""
        return self.offsets.size - 1

    def slice(self, first: int, last: int) -> TokenBlock:
        """The documents [first, last), without a copy of their tokens."""
        begin, end = self.offsets[[first, last]]
        sentences = None
        if self.sentences is not None:
            low, high = np.searchsorted(self.sentences, [begin, end])
            sentences = self.sentences[low : high + 1] - begin
        return TokenBlock(self.tokens[begin:end], self.offsets[first : last + 1] - begin, sentences)

    def select(self, chosen: NDArray[np.bool_]) -> TokenBlock:
        """The documents of which `chosen`, [documents], is True; none of the block may be empty."""
        if chosen.all():
            return self
        lengths = np.diff(self.offsets)
        tokens = self.tokens[np.repeat(chosen, lengths)]
        sentences = None
        if self.sentences is not None:
            owners = np.searchsorted(self.offsets, self.sentences[:-1], side="right") - 1
            sentences = offsets_of(np.diff(self.sentences)[chosen[owners]])
        return TokenBlock(tokens, offsets_of(lengths[chosen]), sentences)

    def without_empty(self) -> TokenBlock:
        """The documents, and the sentences, that have a token."""
        sentences = None if self.sentences is None else np.unique(self.sentences)
        return TokenBlock(self.tokens, np.unique(self.offsets), sentences)

    def ended_by(self, end: int) -> TokenBlock:
        """The same documents, none of them empty, with the id `end` after each that does not end with it."""
        ends = self.offsets[1:]
        places = ends[self.tokens[ends - 1] != end]
        if places.size == 0:
            return self

        def moved(offsets: Offsets) -> Offsets:
            return offsets + np.searchsorted(places, offsets, side="right")

        tokens = np.insert(self.tokens.astype(np.int64), places, end)
        return TokenBlock(tokens, moved(self.offsets), None if self.sentences is None else moved(self.sentences))

    def without_end(self, end: int) -> TokenBlock:
        """The same documents without the last token where that is the id `end`; they may become empty."""
        lasts = self.offsets[1:] - 1
        places = lasts[self.tokens[lasts] == end]

        def moved(offsets: Offsets) -> Offsets:
            return offsets - np.searchsorted(places, offsets)

        sentences = None if self.sentences is None else np.unique(moved(self.sentences))
        return TokenBlock(np.delete(self.tokens, places), moved(self.offsets), sentences)

    def rows(self) -> Iterator[NDArray[np.integer]]:
        """The token ids of each document, a view."""
        bounds = self.offsets.tolist()
        for begin, end in pairwise(bounds):
            yield self.tokens[begin:end]


def offsets_of(lengths: NDArray[np.integer]) -> Offsets:
    """Where pieces of these lengths start, one after the other, and where the last one ends; [pieces + 1], int64."""
    offsets = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def cut(offsets: NDArray[np.integer], tokens: int = BLOCK_TOKENS) -> Iterator[tuple[int, int]]:
    """Cut documents into runs [first, last) of up to so many tokens, and of one document at least.

    Args:
        offsets: where each document starts, then where the last one ends, [documents + 1].
        tokens: of a run.
    """
    first, count = 0, offsets.size - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + np.int64(tokens), side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last
