from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.samples import Sample
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.samples.randomness import KeyedDraws, Purpose, SampleKeys, random_words, uniforms, with_number
from data_pipeline.shards.errors import BrokenShard
from tests.data_pipeline import chi_square
from tests.data_pipeline.shard_files import counting_prose, random_prose

OPTIONS = {
    "causal": ObjectiveOptions("causal"),
    "causal, attention within documents": ObjectiveOptions("causal", document_attention=True),
    "best fit": ObjectiveOptions("causal", packing="best_fit"),
    "best fit, attention within documents": ObjectiveOptions("causal", packing="best_fit", document_attention=True),
    "tokens": ObjectiveOptions("mlm"),
    "words, static": ObjectiveOptions("mlm", mask_unit="word", copies=2),
    "n-grams": ObjectiveOptions("mlm", mask_unit="ngram"),
    "next sentence": ObjectiveOptions("mlm_nsp", max_predictions=5),
    "sentence order": ObjectiveOptions("mlm_sop", mask_unit="ngram", short_sequence_probability=0.5),
}
LENGTH = 48


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [random_prose(12, seed=seed) for seed in range(3)])


@pytest.fixture(scope="module")
def samples_of(shards):
    return {name: build_samples(shards, options, LENGTH, 7, "train", True) for name, options in OPTIONS.items()}


def columns_of(batch):
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


@pytest.mark.parametrize("name", OPTIONS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 12))
def test_a_batch_is_its_samples_one_to_a_row_in_any_order_and_number(samples_of, name, seed, size):
    samples = samples_of[name]
    rng = np.random.default_rng(seed)
    indices, epochs = rng.integers(0, len(samples), size), rng.integers(0, 3, size)
    batch = samples.batch(indices, epochs)
    rows = [samples.sample(index, epoch) for index, epoch in zip(indices.tolist(), epochs.tolist(), strict=True)]
    assert all(type(row) is Sample for row in rows)
    names = {
        "inputs": "inputs",
        "labels": "labels",
        "lengths": "length",
        "segments": "segments",
        "pair_labels": "pair_label",
        "documents": "documents",
    }
    for column, values in columns_of(batch).items():
        if column == "documents" and not OPTIONS[name].document_attention:
            assert values is None
            continue
        assert values.dtype == np.int64
        assert values.shape == ((size,) if column in ("lengths", "pair_labels") else (size, LENGTH))
        for value, row in zip(values, rows, strict=True):
            np.testing.assert_array_equal(value, getattr(row, names[column]))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_last_sample_goes_into_a_batch_with_any_other(samples_of, name):
    samples = samples_of[name]
    last = len(samples) - 1
    batch = samples.batch(np.array([last, 0, last]), np.zeros(3, dtype=int))
    np.testing.assert_array_equal(batch.inputs[0], batch.inputs[2])
    np.testing.assert_array_equal(batch.inputs[0], samples.sample(last, 0).inputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_batches_of_samples_that_are_not_there_are_refused(samples_of, name):
    samples = samples_of[name]
    for outside in (-1, len(samples)):
        with pytest.raises(IndexError, match=f"sample {outside} is outside"):
            samples.batch(np.array([0, outside]), np.zeros(2, dtype=int))
        with pytest.raises(IndexError):
            samples.shards_of(np.array([outside]))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_reads_no_shard_that_was_not_announced(shards, samples_of, name):
    samples = samples_of[name]
    names = [entry.name for entry in shards.manifest.shards]
    indices = np.arange(len(samples))
    announced = samples.shards_of(indices, np.ones_like(indices))
    assert set().union(*announced) == {0, 1, 2}
    try:
        for number, file in enumerate(names):
            # A shard in quarantine says so when it is read.
            shards.set_quarantined([file])
            for index in indices.tolist():
                if number not in announced[index]:
                    samples.batch(np.array([index]), np.array([1]))
                elif OPTIONS[name].kind != "mlm_nsp":
                    with pytest.raises(BrokenShard):
                        samples.batch(np.array([index]), np.array([1]))
    finally:
        shards.set_quarantined([])


def test_without_epochs_only_the_own_text_of_a_pair_is_announced(samples_of):
    samples = samples_of["next sentence"]
    indices = np.arange(len(samples))
    own, all_of = samples.shards_of(indices), samples.shards_of(indices, np.zeros_like(indices))
    assert {len(numbers) for numbers in own} == {1}
    assert all(set(few) <= set(many) for few, many in zip(own, all_of, strict=True))
    assert any(len(numbers) == 2 for numbers in all_of)


def test_numbers_are_those_of_the_published_generator():
    # The first outputs of SplitMix64 from the state 1234567, as its test vectors give them.
    words = random_words(np.array([1234567], dtype=np.uint64), Purpose.HIDDEN, np.arange(5))
    assert words.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_drawn_one_after_the_other_are_those_found_by_their_place():
    keys = SampleKeys(7, "mlm", "train", 0)(np.arange(3), np.zeros(3, dtype=int))
    expected = uniforms(keys[:, None], Purpose.NGRAMS, np.arange(30))
    for ahead in (0, 7, 12, 40):
        for own, numbers in zip(KeyedDraws.of_batch(keys, Purpose.NGRAMS, ahead), expected, strict=True):
            drawn = np.concatenate([own.random(size) for size in (5, 2, 0, 13, 10)])
            np.testing.assert_array_equal(drawn, numbers)


def test_keys_of_an_epoch_differ_and_numbers_of_neighbouring_samples_are_uniform_and_unrelated():
    indices = np.arange(20_000)
    keys = SampleKeys(7, "mlm", "train", 0)
    first, second = keys(indices, np.zeros_like(indices)), keys(indices, np.ones_like(indices))
    assert np.unique(np.concatenate([first, second])).size == 40_000
    draws = uniforms(first[:, None], Purpose.HIDDEN, np.arange(4))
    assert 0 <= draws.min() < draws.max() < 1
    for column in draws.T:
        assert chi_square.fits(np.bincount((column * 50).astype(int)), np.ones(50))
    # Of two numbers of a sample, of two samples next to each other, and of two epochs: all pairs equally often.
    other = uniforms(second, Purpose.HIDDEN, np.array(0))
    for left, right in [(draws[:, 0], draws[:, 1]), (draws[:-1, 0], draws[1:, 0]), (draws[:, 0], other)]:
        cells = (left * 10).astype(int) * 10 + (right * 10).astype(int)
        assert chi_square.fits(np.bincount(cells, minlength=100), np.ones(100))


@given(limit=st.integers(1, 10**6), seed=st.integers(0, 99))
def test_words_that_carry_a_number_are_all_different_and_give_it_back(limit, seed):
    numbers = np.unique(np.random.default_rng(seed).integers(0, limit, 20))
    words = with_number(np.full(numbers.size, 2**64 - 1, dtype=np.uint64), numbers, limit)
    assert np.unique(words).size == numbers.size
    np.testing.assert_array_equal(words & np.uint64((1 << (limit - 1).bit_length()) - 1), numbers)


@pytest.mark.parametrize("options", [{"packing": "best_fit"}, {"document_attention": True}])
def test_packing_and_attention_within_documents_are_of_causal_objectives_alone(options):
    with pytest.raises(ValueError, match="of the objective causal, not of mlm_sop"):
        ObjectiveOptions("mlm_sop", **options)
