"""Best-fit packing: documents cut only where they are longer than a row, rows filled by the pieces that fit best.

Source: Ding et al. 2024 (arXiv 2404.10830), algorithm 1, best-fit decreasing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples.index_cache import Columns, cached_columns
from data_pipeline.shards import ShardSet

_RULES = 1
"""Version of what follows: another one whenever the same documents make other rows."""


@dataclass(frozen=True)
class PackedRows:
    """Which pieces of documents stand in each row; 12 bytes a piece and 8 a row.

    A row holds up to S + 1 tokens: S inputs, and behind the last of them one label. A piece is at least two tokens of
    one document, of which it predicts all but the first. A document of more than S + 1 tokens is cut into pieces of
    S + 1 that share one token with the next, so that each of its tokens but the first is predicted once. Only a
    document of a single token, which could predict nothing, is in no row.

    Attributes:
        starts: number of each row's first piece, then the number of pieces, [rows + 1], int64.
        begins: position of each piece's first token in the shard set, ascending within a row, [pieces], int64.
        lengths: tokens of each piece, [pieces], int32.
    """

    starts: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return self.starts.size - 1


def pack_documents(shards: ShardSet, sequence_length: int, cache: Path | None = None) -> PackedRows:
    """Pack the documents of each shard for itself; rows stand in the order of their first pieces in the data.

    Args:
        shards: the documents.
        sequence_length: S, inputs of a row.
        cache: folder that keeps the result; see :mod:`data_pipeline.samples.index_cache`.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def parts() -> Iterator[Columns]:
        first_piece = 0
        for structure in shards.structures():
            begins, lengths = cut_documents(structure.documents, sequence_length)
            row_of, order = _in_order(best_fit(lengths, sequence_length + 1))
            starts = np.flatnonzero(np.diff(row_of, prepend=-1)) + first_piece
            first_piece += lengths.size
            yield {
                "starts": starts,
                "begins": begins[order] + structure.first_token,
                "lengths": lengths[order].astype(np.int32),
            }
        yield {
            "starts": np.array([first_piece]),
            "begins": np.empty(0, dtype=np.int64),
            "lengths": np.empty(0, dtype=np.int32),
        }

    about: dict[str, str | int] = {"shards": shards.fingerprint, "kind": "best_fit"}
    about |= {"room": sequence_length + 1, "rules": _RULES}
    return PackedRows(**cached_columns(cache, about, parts))


def cut_documents(offsets: NDArray[np.int64], sequence_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each piece of each document begins, and its number of tokens; see :class:`PackedRows`.

    Args:
        offsets: where each document starts, then the number of tokens, [documents + 1].
        sequence_length: S.

    Returns: both [pieces], int64, in the order of the text.
    """
    predicted = np.diff(offsets) - 1
    counts = -(-predicted // sequence_length)
    document = np.repeat(np.arange(counts.size), counts)
    number = np.arange(document.size) - (np.cumsum(counts) - counts)[document]
    begins = offsets[document] + number * sequence_length
    return begins, np.minimum(offsets[document + 1] - begins, sequence_length + 1)


def best_fit(sizes: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """Put each item into the fullest row that it fits into, the largest first; into a new one if there is none.

    Rows with equally much room are one class, and all items of one size that go to a class are placed at once: the
    work grows with the number of sizes, not of items.

    Args:
        sizes: of the items, in [1, room], [items].
        room: of a row.

    Returns: number of the row of each item, from 0, without gaps, [items], int64.
    """
    rows = np.empty(sizes.size, dtype=np.int64)
    # A stable sort of 16 bits is a radix sort.
    order = np.argsort((room - sizes).astype(np.uint16 if room < 1 << 16 else np.int64), kind="stable")
    spaces = _Spaces(room)
    placed = 0
    for size, count in zip(*(column[::-1].tolist() for column in np.unique(sizes, return_counts=True)), strict=True):
        end = placed + count
        while placed < end:
            space, taken = spaces.take(size, end - placed)
            each = space // size
            items = min(end - placed, taken.size * each)
            rows[order[placed : placed + items]] = np.repeat(taken, each)[:items]
            full, more = divmod(items, each)
            spaces.put(taken[:full], space - each * size)
            spaces.put(taken[full:], space - more * size)
            placed += items
    return rows


class _Spaces:
    """Rows by the room that is left in them."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: dict[int, list[NDArray[np.int64]]] = {}
        self._occupied = 0  # bit s is set if a row has room for exactly s more
        self._opened = 0

    def take(self, size: int, items: int) -> tuple[int, NDArray[np.int64]]:
        """The least space that holds an item of `size`, and rows that have it, for up to so many items; or new rows."""
        fitting = self._occupied >> size
        space = size + (fitting & -fitting).bit_length() - 1 if fitting else self._room
        wanted = -(-items // (space // size))
        if not fitting:
            self._opened += wanted
            return space, np.arange(self._opened - wanted, self._opened)
        rows = np.concatenate(self._rows.pop(space))
        self._occupied ^= 1 << space
        self.put(rows[wanted:], space)
        return space, rows[:wanted]

    def put(self, rows: NDArray[np.int64], space: int) -> None:
        """Give rows back that have so much room left."""
        if rows.size and space:
            self._rows.setdefault(space, []).append(rows)
            self._occupied |= 1 << space


def _in_order(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number rows by their first items, and sort the items by row: the row of each, and which item it is."""
    count = int(rows.max()) + 1 if rows.size else 0
    first = np.empty(count, dtype=np.int64)
    first[rows[::-1]] = np.arange(rows.size)[::-1]  # of several, the last that is written stays: the first item
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(count)
    numbers = rank[rows]
    order = np.argsort(numbers, kind="stable")
    return numbers[order], order
