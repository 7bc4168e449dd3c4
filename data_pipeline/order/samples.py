"""The order in which a run reads the samples of one data set: endless, another one in every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.permutation import Permutation, derive_key

Indices = NDArray[np.int64]
Shuffle = Literal["global", "block", "none"]

_AT_ONCE = 4096
"""Counters that are found together and kept: for a few, the calls cost far more than the arithmetic."""


@dataclass(frozen=True)
class _Stretch:
    """The part of an epoch that an order reads: the cells at its positions [begin, end), after `first` counters."""

    epoch: int
    begin: int
    end: int
    first: int
    size: int


class SampleOrder:
    """Which sample each counter reads.

    A data set may be divided into cells: stretches of its text that are read as a whole before the next are begun.
    Every epoch has its own order of cells. A phase of a run starts where the one before it has left off, between two
    cells, so that it first reads what that one has not, whatever the length of their samples.

    Args:
        num_samples: n, samples of the data set.
        seed: of the run.
        source: name of the data set; two sources of one run have unrelated orders.
        shuffle: "global" permutes all samples of an epoch; "block" permutes the cells and, within groups of
            `block_cells` of them, the samples, so that few cells are needed at a time; "none" reads everything as
            it is stored.
        cells: index of the first sample that begins in each cell, ascending from 0, then n, [cells + 1], int64;
            None: one cell.
        block_cells: cells that are shuffled together by "block".
        first_cell: where the order begins, counted in cells from the start of epoch 0.
        end_cell: before which cell it ends; None: never. "global" permutes no more than is read of the last epoch,
            and so has to know; the other two are the same up to the end.

    Raises:
        ValueError: there is no sample, or cells that do not fit.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        source: str,
        shuffle: Shuffle,
        *,
        cells: Indices | None = None,
        block_cells: int = 1,
        first_cell: int = 0,
        end_cell: int | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"an order of {num_samples} samples")
        self.num_samples = num_samples
        self._cells = np.array([0, num_samples]) if cells is None else cells
        if self._cells[0] != 0 or self._cells[-1] != num_samples or (np.diff(self._cells) < 0).any():
            raise ValueError(f"cells from {self._cells[0]} to {self._cells[-1]} of {num_samples} samples")
        if block_cells < 1 or first_cell < 0 or (end_cell is not None and end_cell < first_cell):
            raise ValueError(f"cells [{first_cell}, {end_cell}) in blocks of {block_cells}")
        self._seed = seed
        self._source = source
        self._shuffle = shuffle
        self._block_cells = block_cells
        self._first_cell = first_cell
        self._end_cell = end_cell
        self._ends_of_epoch: tuple[int, Indices, Indices] | None = None
        self._kept: tuple[int, Indices, Indices] | None = None

    @property
    def num_cells(self) -> int:
        """Cells of an epoch."""
        return self._cells.size - 1

    def samples(self, begin: int, end: int) -> Indices:
        """Sample indices of the counters [begin, end), [end - begin], int64.

        An epoch may end, and the next begin, anywhere in the range.

        Raises:
            ValueError: not 0 <= begin <= end, or counters behind the end of the order.
        """
        return self.picks(begin, end)[0]

    def epoch(self, counter: int) -> int:
        """The epoch, from 0, in which a counter lies."""
        return self._stretch(counter).epoch

    def picks(self, begin: int, end: int) -> tuple[Indices, Indices]:
        """Sample indices and epochs of the counters [begin, end), both [end - begin], int64.

        Raises:
            ValueError: not 0 <= begin <= end, or counters behind the end of the order.
        """
        if not 0 <= begin <= end:
            raise ValueError(f"counters [{begin}, {end})")
        size = min(_AT_ONCE, self.num_samples)
        first = begin - begin % size
        if end > first + size or begin == end:
            return self._find(begin, end)
        if self._kept is None or self._kept[0] != first or end > first + self._kept[1].size:
            self._kept = first, *self._find(first, max(end, min(first + size, self._count())))
        _, indices, epochs = self._kept
        return indices[begin - first : end - first].copy(), epochs[begin - first : end - first].copy()

    def _count(self) -> int:
        """Counters that the order has, or a number above all that anybody asks for."""
        if self._end_cell is None:
            return 1 << 62
        first, begin = divmod(self._first_cell, self.num_cells)
        last = self._end_cell // self.num_cells
        if last == first:
            return self._part(first, begin, 0).size
        between = (last - first - 1) * self.num_samples
        return self._part(first, begin, 0).size + between + self._part(last, 0, 0).size

    def _find(self, begin: int, end: int) -> tuple[Indices, Indices]:
        indices, epochs = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        while begin < end:
            stretch = self._stretch(begin)
            last = min(stretch.first + stretch.size, end)
            offsets = np.arange(begin - stretch.first, last - stretch.first, dtype=np.int64)
            indices.append(self._within(stretch, offsets))
            epochs.append(np.full(last - begin, stretch.epoch, dtype=np.int64))
            begin = last
        return np.concatenate(indices), np.concatenate(epochs)

    def cell_after(self, count: int) -> int:
        """The first cell, counted from the start of epoch 0, that an order leaves untouched in `count` samples.

        With "block", one that is not shuffled together with touched ones.

        Raises:
            ValueError: a negative count, or more than the order has.
        """
        if count == 0:
            return self._first_cell
        stretch = self._stretch(count - 1)
        ends = self._order_of_cells(stretch.epoch)[1]
        before = ends[stretch.begin - 1] if stretch.begin else 0
        position = int(np.searchsorted(ends, before + count - stretch.first)) + 1
        if self._shuffle == "block":
            blocks = -(-(position - stretch.begin) // self._block_cells)
            position = min(stretch.begin + blocks * self._block_cells, stretch.end)
        return stretch.epoch * self.num_cells + position

    def _stretch(self, counter: int) -> _Stretch:
        """The part of an epoch in which a counter lies."""
        if counter < 0:
            raise ValueError(f"counter {counter}")
        epoch, begin = divmod(self._first_cell, self.num_cells)
        stretch = self._part(epoch, begin, 0)
        if counter >= stretch.size:
            further, _ = divmod(counter - stretch.size, self.num_samples)
            stretch = self._part(epoch + 1 + further, 0, stretch.size + further * self.num_samples)
        if counter >= stretch.first + stretch.size:
            raise ValueError(f"counter {counter} lies behind the end of the order")
        return stretch

    def _part(self, epoch: int, begin: int, first: int) -> _Stretch:
        end = self.num_cells
        if self._end_cell is not None:
            end = max(begin, min(end, self._end_cell - epoch * self.num_cells))
        if (begin, end) == (0, self.num_cells):
            return _Stretch(epoch, begin, end, first, self.num_samples)
        ends = self._order_of_cells(epoch)[1]
        size = int((ends[end - 1] if end else 0) - (ends[begin - 1] if begin else 0))
        return _Stretch(epoch, begin, end, first, size)

    def _order_of_cells(self, epoch: int) -> tuple[Indices, Indices]:
        """The cells of an epoch in order, and the samples up to and with each of them."""
        if self._ends_of_epoch is None or self._ends_of_epoch[0] != epoch:
            order = np.arange(self.num_cells, dtype=np.int64)
            if self._shuffle != "none" and self.num_cells > 1:
                order = Permutation(self.num_cells, derive_key(self._seed, self._source, epoch, "cells"))(order)
            self._ends_of_epoch = epoch, order, np.cumsum(np.diff(self._cells)[order])
        return self._ends_of_epoch[1:]

    def _within(self, stretch: _Stretch, offsets: Indices) -> Indices:
        """The samples at places of a stretch."""
        if self._shuffle == "none":
            return offsets + int(self._cells[stretch.begin])
        if self._shuffle == "global":
            return self._shuffled(stretch.epoch, stretch.begin, stretch.end, offsets)
        ends = self._order_of_cells(stretch.epoch)[1]
        last_cells = np.append(np.arange(stretch.begin, stretch.end, self._block_cells)[1:], stretch.end) - 1
        before = ends[stretch.begin - 1] if stretch.begin else 0
        block_ends = ends[last_cells] - before
        blocks = np.searchsorted(block_ends, offsets, side="right")
        found = np.empty_like(offsets)
        for block in np.unique(blocks).tolist():
            rows = blocks == block
            begin = stretch.begin + block * self._block_cells
            first = block_ends[block - 1] if block else 0
            found[rows] = self._shuffled(stretch.epoch, begin, int(last_cells[block]) + 1, offsets[rows] - first)
        return found

    def _shuffled(self, epoch: int, begin: int, end: int, offsets: Indices) -> Indices:
        """The samples at places of the cells at positions [begin, end) of an epoch, all of them permuted."""
        if (begin, end) == (0, self.num_cells):
            return Permutation(self.num_samples, derive_key(self._seed, self._source, epoch))(offsets)
        order, ends = self._order_of_cells(epoch)
        before = int(ends[begin - 1]) if begin else 0
        key = derive_key(self._seed, self._source, epoch, begin, end)
        places = before + Permutation(int(ends[end - 1]) - before, key)(offsets)
        positions = np.searchsorted(ends, places, side="right")
        cells = order[positions]
        return self._cells[cells + 1] - (ends[positions] - places)
