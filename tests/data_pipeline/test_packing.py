from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.packed import PackedSamples
from data_pipeline.samples.packing import best_fit, cut_documents, pack_documents
from tests.data_pipeline.shard_files import SPECIAL_IDS, counting_prose, counting_shards, document, write_shards

PAD = SPECIAL_IDS["pad"]
lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=12)
shard_sets = st.lists(lengths_of_documents, min_size=1, max_size=3).filter(lambda shards: max(map(max, shards)) > 1)


def counting_documents(folder, shards):
    """Documents of so many tokens, whose ids say where they stand: token k of the set has the id k + 10."""
    written, position = [], 10
    for lengths in shards:
        written.append([document(range(end - size, end)) for size, end in ends_of(lengths, position)])
        position += sum(lengths)
    return write_shards(folder, written, position, SPECIAL_IDS)


def ends_of(lengths, first):
    ends = np.cumsum([first, *lengths]).tolist()
    return [(end - begin, end) for begin, end in pairwise(ends)]


def slowly_packed(sizes, room):
    """What is left in each row of best-fit decreasing, item by item over all rows."""
    spaces = []
    for size in sorted(sizes, reverse=True):
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else room) - size)
    return sorted(spaces)


@settings(deadline=None, max_examples=300)
@given(room=st.integers(1, 40), seed=st.integers(0, 10**6), items=st.integers(0, 120), spread=st.floats(0.05, 1))
def test_rows_are_filled_as_by_looking_for_the_best_fit_of_each_item(room, seed, items, spread):
    sizes = np.random.default_rng(seed).integers(1, max(2, int(room * spread) + 1), items)
    rows = best_fit(sizes, room)
    filled = np.bincount(rows, sizes, minlength=0).astype(int)
    assert sorted((room - filled).tolist()) == slowly_packed(sizes.tolist(), room)
    assert set(rows.tolist()) == set(range(filled.size))


def test_rooms_beyond_16_bits_are_filled_too():
    sizes = np.array([70_000, 50_000, 40_000, 30_000, 10_000])
    assert sorted(np.bincount(best_fit(sizes, 80_000), sizes).astype(int).tolist()) == [40_000, 80_000, 80_000]


@settings(deadline=None, max_examples=100)
@given(lengths=lengths_of_documents, length=st.integers(1, 12))
def test_documents_are_cut_only_where_they_are_too_long(lengths, length):
    begins, sizes = cut_documents(np.cumsum([0, *lengths]), length)
    expected = []
    for size, end in ends_of(lengths, 0):
        begin = end - size
        while end - begin > length + 1:
            expected.append((begin, length + 1))
            begin += length
        expected += [(begin, end - begin)] if end - begin > 1 else []
    assert list(zip(begins.tolist(), sizes.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=25)
@given(shards=shard_sets, length=st.integers(1, 16))
def test_every_token_but_the_first_of_a_document_is_predicted_once_and_padding_nothing(
    tmp_path_factory, shards, length
):
    samples = PackedSamples(counting_documents(tmp_path_factory.mktemp("shards"), shards), length)
    rows = samples.batch(np.arange(len(samples)), np.zeros(len(samples), dtype=int))
    targets = rows.labels != IGNORE_INDEX
    np.testing.assert_array_equal(rows.labels[targets], rows.inputs[targets] + 1)
    firsts = {10 + end - size for size, end in ends_of(chain.from_iterable(shards), 0)}
    everything = set(range(10, 10 + sum(map(sum, shards))))
    assert sorted(rows.labels[targets].tolist()) == sorted(everything - firsts)
    padding = np.arange(length) >= rows.lengths[:, None]
    assert (rows.inputs[padding] == PAD).all()
    assert (rows.inputs[~padding] >= 10).all()
    assert not targets[padding].any()


def test_a_row_by_hand(tmp_path):
    # Rows of 8 tokens at most: 8 of 12, which goes on with 5 that share one; 3 fit beside those 5; 6; and 1 alone.
    shards = counting_documents(tmp_path, [[12, 3, 6, 1]])
    samples = PackedSamples(shards, 7, document_attention=True)
    assert len(samples) == 3
    first, second, third = (samples.sample(index, 0) for index in range(3))
    assert first.inputs.tolist() == list(range(10, 17))
    assert first.labels.tolist() == list(range(11, 18))
    assert (first.document_starts.tolist(), first.length) == ([0], 7)
    assert second.inputs.tolist() == [17, 18, 19, 20, 21, 22, 23]
    assert second.labels.tolist() == [18, 19, 20, 21, IGNORE_INDEX, 23, 24]
    assert second.documents.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert second.document_starts.tolist() == [5]  # what begins the row is the rest of a document
    assert third.inputs.tolist() == [25, 26, 27, 28, 29, 30, PAD]
    assert third.labels.tolist() == [26, 27, 28, 29, 30, IGNORE_INDEX, IGNORE_INDEX]
    assert third.documents.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert third.length == 6


@settings(deadline=None, max_examples=25)
@given(shards=shard_sets, length=st.integers(2, 16))
def test_rows_hold_no_document_in_two_parts_that_would_fit_into_one(tmp_path_factory, shards, length):
    set_of_shards = counting_documents(tmp_path_factory.mktemp("shards"), shards)
    rows = pack_documents(set_of_shards, length)
    whole = {(end - size, size) for size, end in ends_of(chain.from_iterable(shards), 0) if 1 < size <= length + 1}
    assert whole <= set(zip(rows.begins.tolist(), rows.lengths.tolist(), strict=True))
    ends = np.cumsum([sum(lengths) for lengths in shards])
    previous = -1
    for first, last in pairwise(rows.starts.tolist()):
        begins = rows.begins[first:last]
        assert rows.lengths[first:last].sum() <= length + 1
        assert (np.diff(begins) > 0).all()
        assert begins[0] > previous  # rows stand in the order of the text
        assert np.unique(np.searchsorted(ends, begins, side="right")).size == 1  # and in one shard each
        previous = begins[0]


def test_the_rows_of_a_shard_do_not_depend_on_the_others(tmp_path):
    shards = [[30, 5, 9, 2, 14], [7, 7, 22, 3]]
    both = pack_documents(counting_documents(tmp_path / "both", shards), 8)
    alone = [pack_documents(counting_documents(tmp_path / str(n), [lengths]), 8) for n, lengths in enumerate(shards)]
    np.testing.assert_array_equal(both.lengths, np.concatenate([rows.lengths for rows in alone]))
    np.testing.assert_array_equal(both.begins, np.concatenate([alone[0].begins, alone[1].begins + 60]))
    assert len(both) == sum(map(len, alone))


def test_rows_are_nearly_full_when_documents_are_short(tmp_path):
    rng = np.random.default_rng(0)
    samples = PackedSamples(counting_documents(tmp_path, [rng.geometric(1 / 60, 3000).tolist()]), 256)
    rows = samples.batch(np.arange(len(samples)), np.zeros(len(samples), dtype=int))
    assert rows.lengths.sum() > 0.995 * rows.inputs.size


def documents_slowly(starts, length, filled):
    numbers, number = [], 0
    for position in range(length):
        number += position > 0 and (position in starts or position == filled)
        numbers.append(number)
    return numbers


@settings(deadline=None, max_examples=25)
@given(shards=shard_sets, length=st.integers(1, 16))
def test_documents_of_joined_text_are_counted_within_each_window(tmp_path_factory, shards, length):
    set_of_shards = counting_documents(tmp_path_factory.mktemp("shards"), shards)
    samples = CausalSamples(set_of_shards, length, keep_tail=True, document_attention=True)
    plain = CausalSamples(set_of_shards, length, keep_tail=True)
    starts = {end - size for size, end in ends_of(chain.from_iterable(shards), 0)}
    for index in range(len(samples)):
        sample, without = samples.sample(index, 0), plain.sample(index, 0)
        inside = {start - index * length for start in starts}
        filled = set_of_shards.num_tokens - 1 - index * length
        assert sample.documents.tolist() == documents_slowly(inside, length, filled)
        assert without.documents is None
        np.testing.assert_array_equal(sample.inputs, without.inputs)
        np.testing.assert_array_equal(sample.labels, without.labels)


@settings(deadline=None, max_examples=25)
@given(shards=shard_sets, length=st.integers(1, 16))
def test_documents_of_packed_rows_change_where_the_text_jumps_or_ends(tmp_path_factory, shards, length):
    set_of_shards = counting_documents(tmp_path_factory.mktemp("shards"), shards)
    samples = PackedSamples(set_of_shards, length, document_attention=True)
    starts = {10 + end - size for size, end in ends_of(chain.from_iterable(shards), 0)}
    for index in range(len(samples)):
        sample = samples.sample(index, 0)
        jumps = {
            place
            for place in range(1, sample.length)
            if sample.inputs[place] in starts or sample.inputs[place] != sample.inputs[place - 1] + 1
        }
        assert sample.documents.tolist() == documents_slowly(jumps, length, sample.length)
        at_starts = [place for place in range(sample.length) if sample.inputs[place] in starts]
        assert sample.document_starts.tolist() == at_starts


def test_without_a_pad_id_rows_are_filled_up_with_0(tmp_path):
    samples = PackedSamples(counting_shards(tmp_path, 7), 4)
    assert samples.sample(1, 0).inputs.tolist() == [4, 5, 6, 0]


def test_documents_that_predict_nothing_are_refused_with_a_way_out(tmp_path):
    shards = write_shards(tmp_path, [[document([7]), document([8])]])
    with pytest.raises(DataError, match=r"no document in .* has two tokens: build it from more text"):
        PackedSamples(shards, 4)
    with pytest.raises(ValueError):
        PackedSamples(counting_prose(tmp_path / "other", [[[5, 6]]]), 0)
