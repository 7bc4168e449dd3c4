from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX, Sample
from data_pipeline.samples.chunks import document_chunks
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.pairs import PairSamples, truncate_pair
from data_pipeline.samples.randomness import Purpose, SampleKeys, uniforms
from tests.data_pipeline import chi_square
from tests.data_pipeline.shard_files import (
    SPECIAL_IDS,
    TEXT,
    counting_prose,
    document,
    random_prose,
    write_shards,
)

PAD, CLASSIFY, SEPARATOR = (SPECIAL_IDS[role] for role in ("pad", "classify", "separator"))
LENGTH = 128
ROOM = LENGTH - 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [random_prose(150, seed=seed) for seed in range(2)])


@pytest.fixture(scope="module")
def chunks(shards):
    return document_chunks(shards, ROOM)


def pairs(shards, kind="next_sentence", *, length=LENGTH, short=0.1, seed=7, copies=0, unit="token"):
    return PairSamples(
        shards,
        length,
        MaskingPolicy(unit=unit),
        kind=kind,
        seed=seed,
        source="train",
        copies=copies,
        short_sequence_probability=short,
    )


def texts_of(sample):
    """Where A and B stand in the set, (begin, end) each, read from the unmasked ids."""
    ids = np.where(sample.labels == IGNORE_INDEX, sample.inputs, sample.labels)[: sample.length]
    assert ids[0] == CLASSIFY
    separators = np.flatnonzero(ids == SEPARATOR).tolist()
    assert separators[1:] == [sample.length - 1]
    texts = []
    for text in (ids[1 : separators[0]], ids[separators[0] + 1 : -1]):
        assert text.size
        np.testing.assert_array_equal(text, np.arange(text[0], text[0] + text.size))  # consecutive, no special id
        texts.append((int(text[0]) - TEXT, int(text[-1]) - TEXT + 1))
    return texts


def bounds_of(chunks, index):
    begin = int(chunks.begins[index])
    return begin, begin + int(chunks.lengths[index])


def every(samples, epochs=1):
    """All samples of some epochs, read in one batch each: (index, sample)."""
    indices = np.arange(len(samples))
    for epoch in range(epochs):
        yield from enumerate(rows_of(samples.batch(indices, np.full_like(indices, epoch))))


def rows_of(batch):
    columns = (batch.inputs, batch.labels, batch.lengths.tolist(), batch.segments, batch.pair_labels.tolist())
    for inputs, labels, length, segments, label in zip(*columns, strict=True):
        yield Sample(inputs, labels, np.empty(0), length, segments, label)


def document_of(shards, position):
    return shards.document_starts(0, position + 1).size - 1


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_a_pair_is_framed_and_its_segments_and_padding_follow(shards, kind):
    for _, sample in every(pairs(shards, kind)):
        (_, _), (begin, end) = texts_of(sample)
        second = np.zeros(LENGTH, dtype=int)
        second[sample.length - 1 - (end - begin) : sample.length] = 1
        np.testing.assert_array_equal(sample.segments, second)
        assert (sample.inputs[sample.length :] == PAD).all()
        assert (sample.labels[sample.length :] == IGNORE_INDEX).all()


def test_a_next_sentence_follows_and_another_comes_from_another_document(shards, chunks):
    for index, sample in every(pairs(shards), epochs=2):
        first, second = texts_of(sample)
        begin, end = bounds_of(chunks, index)
        assert begin <= first[0] < first[1] <= end
        if sample.pair_label == 0:
            assert first[1] <= second[0] < second[1] <= end
        else:
            assert document_of(shards, second[0]) == document_of(shards, second[1] - 1)
            assert document_of(shards, first[0]) != document_of(shards, second[0])


def test_an_ordinary_pair_is_its_chunk_and_a_foreign_text_is_whole_sentences_unless_the_room_ends_it(tmp_path):
    # No sentence is longer than half the room, so none is cut beforehand.
    lengths = [[min(tokens, ROOM // 2) for tokens in document] for document in random_prose(200, seed=5)]
    shards = counting_prose(tmp_path, [lengths])
    chunks = document_chunks(shards, ROOM)
    bounds = set(shards.sentence_starts(0, shards.num_tokens).tolist())
    bounds |= {edge for index in range(len(chunks)) for edge in bounds_of(chunks, index)}
    cut = total = 0
    for index, sample in every(pairs(shards, short=0.0)):
        first, second = texts_of(sample)
        if sample.pair_label == 0:
            assert first[1] == second[0]
            assert (first[0], second[1]) == bounds_of(chunks, index)
        else:
            whole = {*first, *second} <= bounds
            assert whole or sample.length == LENGTH
            total += 1
            cut += not whole
    # Not even the first sentence fits behind a first text that leaves less than one sentence of about eight.
    assert 0 < cut / total < 0.15


def test_swapped_texts_put_back_are_the_text(shards, chunks):
    swapped = 0
    for index, sample in every(pairs(shards, "sentence_order", short=0.0)):
        texts = texts_of(sample)
        swapped += sample.pair_label
        first, second = texts[::-1] if sample.pair_label else texts
        assert first[1] == second[0]
        assert (first[0], second[1]) == bounds_of(chunks, index)
    assert 0 < swapped < len(chunks)


def test_swapped_texts_of_cut_pairs_still_stand_in_their_order_in_the_chunk(shards, chunks):
    for index, sample in every(pairs(shards, "sentence_order", short=1.0)):
        texts = texts_of(sample)
        first, second = texts[::-1] if sample.pair_label else texts
        begin, end = bounds_of(chunks, index)
        assert begin <= first[0] < first[1] <= second[0] < second[1] <= end


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_half_of_the_pairs_have_each_label(shards, kind):
    labels = Counter(sample.pair_label for _, sample in every(pairs(shards, kind), epochs=16))
    assert sum(labels.values()) * LENGTH > 10**6
    assert chi_square.fits([labels[0], labels[1]], [1, 1])


def test_the_length_of_a_pair_tells_its_label_hardly_better_than_a_coin(shards):
    lengths = {0: [], 1: []}
    for _, sample in every(pairs(shards), epochs=4):
        lengths[sample.pair_label].append(sample.length)
    best = max(
        abs(np.mean(np.array(lengths[0]) <= cut) - np.mean(np.array(lengths[1]) <= cut)) for cut in range(LENGTH)
    )
    assert best / 2 < 0.06  # share of right answers above 1/2 of the best threshold


def test_foreign_texts_come_from_every_chunk_of_the_other_documents_equally_often(tmp_path):
    # Chunks of one size, so that where a text starts says which chunk was drawn.
    shards = counting_prose(tmp_path, [[[10] * 4, [10] * 12, [10] * 8], [[10] * 16]])
    samples = pairs(shards, length=43, short=0.0)
    chunks = document_chunks(shards, 40)
    assert np.bincount(chunks.documents).tolist() == [1, 3, 2, 4]
    counts = np.zeros(len(chunks))
    for sample in rows_of(samples.batch(np.full(4000, 2), np.arange(4000))):
        if sample.pair_label:
            counts[np.searchsorted(chunks.begins, texts_of(sample)[1][0], side="right") - 1] += 1
    assert counts[1:4].sum() == 0
    assert chi_square.fits(counts[[0, 4, 5, 6, 7, 8, 9]], np.ones(7))


def test_the_first_text_ends_at_every_sentence_of_its_chunk_equally_often(tmp_path):
    shards = counting_prose(tmp_path, [[[10] * 8, [10] * 8]])
    samples = pairs(shards, "sentence_order", length=83, short=0.0)
    counts = Counter()
    for sample in rows_of(samples.batch(np.zeros(4000, dtype=int), np.arange(4000))):
        texts = texts_of(sample)
        counts[texts[1 - sample.pair_label][0]] += 1
    assert sorted(counts) == [10, 20, 30, 40, 50, 60, 70]
    assert chi_square.fits(list(counts.values()), np.ones(7))


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_short_pairs_have_two_texts_of_up_to_any_random_length(shards, kind):
    lengths = [sample.length - 3 for _, sample in every(pairs(shards, kind, short=1.0), epochs=4)]
    assert (min(lengths), max(lengths) <= ROOM) == (2, True)
    assert np.mean(lengths) < 0.6 * np.mean([sample.length - 3 for _, sample in every(pairs(shards, kind, short=0.0))])


def test_one_pair_in_ten_is_cut_short(shards, chunks):
    full = counted = 0
    for index, sample in every(pairs(shards, "sentence_order"), epochs=4):
        begin, end = bounds_of(chunks, index)
        if end - begin > 100:
            counted += 1
            full += sample.length - 3 == end - begin
    # Of the tenth that is to be shorter, a few are still as long as their chunk: lengths are drawn up to the room.
    long = np.array([n for n in chunks.lengths if n > 100])
    stay = np.mean((ROOM - long + 1) / (ROOM - 1))
    assert chi_square.fits([full, counted - full], [0.9 + 0.1 * stay, 0.1 * (1 - stay)])


def slowly_truncated(sizes, room, rng):
    """The loop of the published code: pop from the longer list, from front or back."""
    texts = [list(range(size)) for size in sizes]
    while len(texts[0]) + len(texts[1]) > room:
        longer = texts[0] if len(texts[0]) > len(texts[1]) else texts[1]
        longer.pop(0 if rng.random() < 0.5 else -1)
    return texts


@settings(deadline=None, max_examples=300)
@given(first=st.integers(1, 60), second=st.integers(1, 60), room=st.integers(2, 80))
def test_truncation_leaves_as_much_of_each_text_as_the_published_loop(first, second, room):
    rng = np.random.default_rng(0)
    expected = slowly_truncated((first, second), room, rng)
    kept = truncate_pair((100, 100 + first), (500, 500 + second), room, rng)
    assert [end - begin for begin, end in kept] == [len(text) for text in expected]
    assert 100 <= kept[0][0] < kept[0][1] <= 100 + first
    assert 500 <= kept[1][0] < kept[1][1] <= 500 + second


def test_truncation_takes_from_front_and_back_as_often_as_the_published_loop():
    rng = np.random.default_rng(5)
    ours = Counter(truncate_pair((0, 10), (20, 23), 8, rng)[0][0] for _ in range(4000))
    # Five tokens go, each from the front with probability 1/2.
    assert chi_square.fits([ours[front] for front in range(6)], [1, 5, 10, 10, 5, 1])


def test_whole_documents_of_one_short_sentence_are_left_out_and_counted(tmp_path):
    shards = counting_prose(tmp_path, [[[5], [5, 6], [3]], [[40], [7, 7]]])
    samples = pairs(shards, length=43)
    assert (len(samples), samples.left_out) == (3, 2)
    first, second = texts_of(pairs(shards, "sentence_order", length=43, short=0.0).sample(1, 0))
    assert {*first, *second} >= {22, 62}  # a long sentence is cut before a word


def test_pairs_and_masks_return_with_static_copies_and_are_new_without(shards):
    static, dynamic = pairs(shards, copies=2), pairs(shards)
    same = [np.array_equal(one.inputs, static.sample(index, 2).inputs) for index, one in every(static)]
    assert all(same)
    for samples in (static, dynamic):
        other = [np.array_equal(one.inputs, samples.sample(index, 1).inputs) for index, one in every(samples)]
        assert sum(other) < 0.01 * len(samples)
    again = [np.array_equal(one.inputs, dynamic.sample(index, 2).inputs) for index, one in every(dynamic)]
    assert sum(again) < 0.01 * len(dynamic)


def test_two_objectives_draw_independently_from_one_seed():
    keys = [SampleKeys(7, kind, "train", 0)(np.array([3]), np.array([0])) for kind in ("mlm", "mlm_nsp")]
    draws = [uniforms(key, Purpose.PAIR, np.arange(4)) for key in keys]
    assert (draws[0] != draws[1]).all()


def test_masks_are_drawn_over_the_finished_pair(shards):
    for _, sample in every(pairs(shards, unit="ngram")):
        predicted = sample.labels[sample.labels != IGNORE_INDEX]
        assert predicted.size <= max(1, round(0.15 * sample.length))
        assert (predicted >= TEXT).all()


def test_shards_without_sentences_are_refused_with_a_way_out(tmp_path):
    shards = counting_prose(tmp_path, [[[50], [60]]])
    with pytest.raises(DataError, match=r"no document in .* has two sentences.*`ptm data build`"):
        pairs(shards)


def test_a_single_document_has_no_other_to_take_text_from(tmp_path):
    shards = counting_prose(tmp_path, [[[5, 6, 7], [3]]])
    with pytest.raises(DataError, match="has 1 documents of two or more sentences, but mlm_nsp needs 2"):
        pairs(shards)
    assert len(pairs(shards, "sentence_order")) == 1


def test_a_tokenizer_without_special_ids_is_refused(tmp_path):
    shards = write_shards(tmp_path, [[document([5, 6, 7, 8, 0])]])
    with pytest.raises(DataError, match="`ptm tokenizer train`"):
        pairs(shards)


def test_lengths_and_shares_that_cannot_be_are_refused(shards):
    with pytest.raises(DataError, match="use at least 5"):
        pairs(shards, length=4)
    assert pairs(shards, length=5).sample(0, 0).length == 5
    with pytest.raises(ValueError):
        pairs(shards, short=1.5)
    with pytest.raises(IndexError):
        pairs(shards).sample(-1, 0)
