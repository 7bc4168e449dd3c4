from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.causal import CausalSamples
from tests.data_pipeline.shard_files import counting_shards, document, write_shards


def test_a_sample_predicts_the_next_token_across_documents_and_shards(tmp_path):
    samples = CausalSamples(counting_shards(tmp_path, 5, 7, 9), 4)
    assert len(samples) == 5
    sample = samples.sample(1, 0)
    assert sample.inputs.tolist() == [4, 5, 6, 7]
    assert sample.labels.tolist() == [5, 6, 7, 8]
    assert sample.document_starts.tolist() == [1]
    assert samples.sample(2, 0).document_starts.tolist() == []
    assert samples.sample(4, 0).labels.tolist() == [17, 18, 19, 20]


def test_a_document_that_starts_at_the_last_label_belongs_to_the_next_sample(tmp_path):
    samples = CausalSamples(write_shards(tmp_path, [[document([1, 2, 3, 0]), document([4, 5, 6, 7, 0])]]), 4)
    assert samples.sample(0, 0).document_starts.tolist() == [0]
    assert samples.sample(1, 0).document_starts.tolist() == [0]


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    length=st.integers(1, 8),
    keep_tail=st.booleans(),
)
def test_every_token_is_predicted_once_and_only_the_tail_may_be_left(tmp_path_factory, counts, length, keep_tail):
    total = sum(counts)
    shards = counting_shards(tmp_path_factory.mktemp("shards"), *counts)
    if total < (2 if keep_tail else length + 1):
        with pytest.raises(DataError):
            CausalSamples(shards, length, keep_tail=keep_tail)
        return
    samples = CausalSamples(shards, length, keep_tail=keep_tail)
    everything = [samples.sample(index, 0) for index in range(len(samples))]
    inputs = np.concatenate([sample.inputs for sample in everything])
    labels = np.concatenate([sample.labels for sample in everything])
    targets = labels != IGNORE_INDEX
    np.testing.assert_array_equal(labels[targets], inputs[targets] + 1)
    predicted = total - 1 if keep_tail else (total - 1) // length * length
    np.testing.assert_array_equal(labels[targets], np.arange(1, predicted + 1))
    assert inputs.size == labels.size == len(samples) * length


def test_the_tail_is_filled_up_and_its_filling_predicts_nothing(tmp_path):
    samples = CausalSamples(counting_shards(tmp_path, 7), 4, keep_tail=True)
    assert len(samples) == 2
    assert samples.sample(1, 0).inputs.tolist() == [4, 5, 0, 0]
    assert samples.sample(1, 0).labels.tolist() == [5, 6, IGNORE_INDEX, IGNORE_INDEX]


def test_no_empty_tail_follows_whole_windows(tmp_path):
    assert len(CausalSamples(counting_shards(tmp_path, 9), 4, keep_tail=True)) == 2


def test_too_few_tokens_say_how_many_there_are_and_how_many_are_needed(tmp_path):
    shards = counting_shards(tmp_path, 4)
    with pytest.raises(DataError, match=r"holds 4 tokens.* length 4 needs 5: .*data\.sequence_length"):
        CausalSamples(shards, 4)
    assert len(CausalSamples(shards, 3)) == 1


def test_causal_samples_have_no_padding_no_pairs_and_are_the_same_in_every_epoch(tmp_path):
    samples = CausalSamples(counting_shards(tmp_path, 7), 4, keep_tail=True)
    for index in range(2):
        first, later = samples.sample(index, 0), samples.sample(index, 5)
        assert (first.length, first.pair_label) == (4, IGNORE_INDEX)
        assert first.segments.tolist() == [0, 0, 0, 0]
        np.testing.assert_array_equal(first.inputs, later.inputs)
        np.testing.assert_array_equal(first.labels, later.labels)


def test_samples_outside_the_set_are_refused(tmp_path):
    samples = CausalSamples(counting_shards(tmp_path, 9), 4)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            samples.sample(index, 0)
    with pytest.raises(ValueError):
        CausalSamples(counting_shards(tmp_path / "other", 9), 0)
