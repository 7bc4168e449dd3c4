from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.masked import MaskedSamples
from data_pipeline.samples.masking import MaskingPolicy
from tests.data_pipeline.shard_files import (
    SPECIAL_IDS,
    TEXT,
    counting_prose,
    document,
    random_prose,
    starts_word,
    write_shards,
)

PAD, END, CLASSIFY, SEPARATOR, MASK = (
    SPECIAL_IDS[role] for role in ("pad", "end_of_document", "classify", "separator", "mask")
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [random_prose(40, seed=seed) for seed in range(2)])


def masked(shards, length=64, *, unit="token", seed=7, source="train", copies=0):
    return MaskedSamples(shards, length, MaskingPolicy(unit=unit), seed=seed, source=source, copies=copies)


def restored(sample):
    """What the model would read without masks, padding left out."""
    return np.where(sample.labels == IGNORE_INDEX, sample.inputs, sample.labels)[: sample.length]


def hidden(samples, epoch):
    return np.stack([samples.sample(index, epoch).labels != IGNORE_INDEX for index in range(len(samples))])


def test_the_samples_without_their_masks_are_the_text_from_its_first_token_to_its_last(shards):
    samples = masked(shards)
    rows = [restored(samples.sample(index, 3)) for index in range(len(samples))]
    assert all(row[0] == CLASSIFY and row[-1] == SEPARATOR for row in rows)
    text = np.concatenate([row[1:-1] for row in rows])
    np.testing.assert_array_equal(text, shards.tokens(0, shards.num_tokens))


def test_samples_hold_whole_sentences_and_as_many_as_fit(shards):
    samples = masked(shards, 128)
    begin = 0
    first_tokens = {int(structure.first_token) for structure in shards.structures()}
    sentences = set(shards.sentence_starts(0, shards.num_tokens).tolist())
    for index in range(len(samples)):
        end = begin + samples.sample(index, 0).length - 2
        following = min((start for start in [*sentences, shards.num_tokens] if start > end), default=end)
        assert begin in sentences
        assert end == shards.num_tokens or end in first_tokens or following - begin > 126
        begin = end


def test_padding_predicts_nothing_and_belongs_to_no_text(shards):
    samples = masked(shards)
    for index in range(len(samples)):
        sample = samples.sample(index, 0)
        assert (sample.inputs[sample.length :] == PAD).all()
        assert (sample.labels[sample.length :] == IGNORE_INDEX).all()
        assert not sample.segments.any()
        assert sample.pair_label == IGNORE_INDEX
        assert {sample.inputs.size, sample.labels.size, sample.segments.size} == {64}


def test_documents_start_behind_the_end_of_the_one_before(shards):
    samples = masked(shards)
    found = 0
    for index in range(len(samples)):
        sample = samples.sample(index, 0)
        text = restored(sample)
        begins = np.flatnonzero(text[:-1] == END) + 1
        assert set(sample.document_starts) - {1} == set(begins) - {sample.length - 1}
        found += sample.document_starts.size
    assert found == shards.num_documents


def test_special_ids_are_never_hidden(shards):
    samples = masked(shards, unit="ngram")
    for index in range(len(samples)):
        labels = samples.sample(index, 0).labels
        assert (labels[labels != IGNORE_INDEX] >= TEXT).all()


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_whole_words_are_hidden_by_the_word_starts_of_the_shards(shards, unit):
    samples = masked(shards, unit=unit)
    for index in range(len(samples)):
        sample = samples.sample(index, 0)
        text = restored(sample)
        is_hidden = (sample.labels != IGNORE_INDEX)[: sample.length]
        inside = np.flatnonzero((text[1:] >= TEXT) & (text[:-1] >= TEXT) & ~starts_word(text[1:] - TEXT)) + 1
        np.testing.assert_array_equal(is_hidden[inside], is_hidden[inside - 1])


def test_static_masks_return_after_as_many_epochs_as_there_are_copies(shards):
    samples = masked(shards, copies=2)
    epochs = [hidden(samples, epoch) for epoch in range(4)]
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    assert (epochs[0] != epochs[1]).any(axis=1).all()


def test_one_copy_is_the_same_in_every_epoch(shards):
    samples = masked(shards, copies=1)
    np.testing.assert_array_equal(hidden(samples, 0), hidden(samples, 17))


def test_dynamic_masks_are_new_in_every_epoch(shards):
    samples = masked(shards)
    epochs = [hidden(samples, epoch) for epoch in range(5)]
    for later in epochs[1:]:
        assert (epochs[0] != later).any(axis=1).mean() > 0.99


@pytest.mark.parametrize("other", [{"seed": 8}, {"source": "validation"}])
def test_masks_depend_on_the_seed_and_the_data_set(shards, other):
    assert (hidden(masked(shards), 0) != hidden(masked(shards, **other), 0)).any(axis=1).mean() > 0.99


def test_a_sample_is_the_same_whenever_and_wherever_it_is_read(shards):
    samples, again = masked(shards, unit="ngram"), masked(shards, unit="ngram")
    for index in [5, 3, 5, 0]:
        one, other = samples.sample(index, 2), again.sample(index, 2)
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_tokenizer_without_special_ids_is_refused_with_a_way_out(tmp_path):
    shards = write_shards(tmp_path, [[document([5, 6, 7, 0])]])
    with pytest.raises(DataError, match=r"no special id for pad, classify, separator, mask, .*`ptm tokenizer train`"):
        masked(shards)


def test_a_length_without_room_for_text_is_refused(shards):
    with pytest.raises(DataError, match=r"data\.sequence_length=2 leaves no room .* use at least 3"):
        masked(shards, 2)
    assert masked(shards, 3).sample(0, 0).length == 3


def test_samples_outside_the_set_are_refused(shards):
    samples = masked(shards)
    for index in (-1, len(samples)):
        with pytest.raises(IndexError):
            samples.sample(index, 0)
    with pytest.raises(ValueError):
        masked(shards, copies=-1)


def test_the_index_is_made_without_reading_the_text(tmp_path):
    shards = counting_prose(tmp_path, [random_prose(4, seed=1)])
    path = tmp_path / shards.manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[shards.manifest.shards[0].members["tokens.bin"].offset] ^= 1
    path.write_bytes(data)
    samples = masked(shards)
    with pytest.raises(DataError, match=r"tokens\.bin"):
        samples.sample(0, 0)
