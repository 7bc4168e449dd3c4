"""Orders over cells: block shuffling, and phases of a run that begin with what earlier ones have not read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import SampleOrder

SHUFFLES = st.sampled_from(["global", "block", "none"])


@st.composite
def cell_tables(draw, cells=None):
    sizes = draw(st.lists(st.integers(0, 9), min_size=cells or 1, max_size=cells or 12).filter(any))
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def order_of(table, shuffle, **options):
    return SampleOrder(int(table[-1]), 7, "train", shuffle, cells=table, block_cells=3, **options)


def cells_of(table, samples):
    return np.searchsorted(table, samples, side="right") - 1


@settings(deadline=None, max_examples=150)
@given(table=cell_tables(), shuffle=SHUFFLES, first_cell=st.integers(0, 30))
def test_every_epoch_reads_every_sample_once_wherever_the_order_begins(table, shuffle, first_cell):
    order = order_of(table, shuffle, first_cell=first_cell)
    count = 3 * int(table[-1])
    indices, epochs = order.picks(0, count)
    first_epoch = first_cell // order.num_cells
    for epoch in range(first_epoch + 1, int(epochs[-1])):
        assert sorted(indices[epochs == epoch]) == list(range(table[-1]))
    head = indices[epochs == first_epoch].tolist()
    assert len(set(head)) == len(head)


@settings(deadline=None, max_examples=150)
@given(table=cell_tables(), shuffle=SHUFFLES, first_cell=st.integers(0, 20), cuts=st.lists(st.integers(0, 60)))
def test_any_cuts_give_the_same_order(table, shuffle, first_cell, cuts):
    order = order_of(table, shuffle, first_cell=first_cell)
    edges = [0, *sorted(cuts), 60]
    pieces = [order.samples(begin, end) for begin, end in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), order.samples(0, 60))


@settings(deadline=None, max_examples=200)
@given(data=st.data(), shuffle=SHUFFLES, first_cell=st.integers(0, 25))
def test_a_phase_begins_with_the_cells_that_the_one_before_has_not_read(data, shuffle, first_cell):
    short = data.draw(cell_tables())
    num_cells = short.size - 1
    long = data.draw(cell_tables(num_cells))
    count = data.draw(st.integers(1, 3 * int(short[-1])))
    border = order_of(short, shuffle, first_cell=first_cell).cell_after(count)
    indices, epochs = order_of(short, shuffle, first_cell=first_cell, end_cell=border).picks(0, count)
    read = {(epoch, cell) for epoch, cell in zip(epochs.tolist(), cells_of(short, indices).tolist(), strict=True)}
    later = order_of(long, shuffle, first_cell=border)
    indices, epochs = later.picks(0, 2 * int(long[-1]))
    after = {(epoch, cell) for epoch, cell in zip(epochs.tolist(), cells_of(long, indices).tolist(), strict=True)}
    assert not read & after
    epoch = border // num_cells
    if epoch == first_cell // num_cells and first_cell % num_cells:
        return  # this epoch was begun before the first of the two phases
    # Together they read each epoch whole: every cell that holds a sample of the longer kind and was not begun.
    begun = {cell for other, cell in read if other == epoch}
    holding = set(np.flatnonzero(np.diff(long)).tolist())
    skipped = holding - begun - {cell for other, cell in after if other == epoch}
    if shuffle != "block":
        filled = set(np.flatnonzero(np.diff(short)).tolist())
        assert len(skipped & filled) <= 1  # the last cell that was taken may not have been drawn from


@settings(deadline=None, max_examples=100)
@given(table=cell_tables(), shuffle=st.sampled_from(["block", "none"]), count=st.integers(1, 60))
def test_a_later_end_changes_nothing_before_it_unless_all_is_shuffled_together(table, shuffle, count):
    endless = order_of(table, shuffle)
    bounded = order_of(table, shuffle, end_cell=endless.cell_after(count))
    np.testing.assert_array_equal(bounded.samples(0, count), endless.samples(0, count))


def test_an_order_ends_where_it_is_told_to():
    table = np.array([0, 4, 8, 12])
    order = order_of(table, "global", end_cell=2)
    assert len(set(cells_of(table, order.samples(0, 8)).tolist())) == 2
    with pytest.raises(ValueError, match="behind the end"):
        order.samples(8, 9)


def test_block_shuffling_needs_few_cells_at_a_time_and_moves_samples_within_them():
    table = np.arange(0, 1001, 10)
    order = SampleOrder(1000, 7, "train", "block", cells=table, block_cells=4)
    indices = order.samples(0, 1000)
    for begin in range(0, 1000, 40):
        block = indices[begin : begin + 40]
        assert len(set((block // 10).tolist())) == 4
        assert sorted(block.tolist()) != block.tolist()
    first_cells = (indices[::40] // 10).tolist()
    assert first_cells != sorted(first_cells)


def test_cells_that_do_not_fit_are_refused():
    for cells in ([0, 5], [1, 10], [0, 7, 3, 10]):
        with pytest.raises(ValueError, match="cells"):
            SampleOrder(10, 7, "train", "global", cells=np.array(cells))
    with pytest.raises(ValueError, match="blocks of 0"):
        SampleOrder(10, 7, "train", "block", block_cells=0)
    with pytest.raises(ValueError, match="cells"):
        SampleOrder(10, 7, "train", "block", first_cell=3, end_cell=2)
