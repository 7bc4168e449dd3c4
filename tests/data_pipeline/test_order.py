from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from itertools import pairwise, permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import Permutation, SampleOrder, derive_key


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 255, 256, 257, 1000, 65536, 65537])
@pytest.mark.parametrize("key", [0, 2**128 - 1, b"bytes"])
def test_a_permutation_takes_every_value_once(n, key):
    values = Permutation(n, key)(np.arange(n))
    assert values.dtype == np.int64
    np.testing.assert_array_equal(np.sort(values), np.arange(n))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**128))
def test_any_size_and_key_is_bijective(n, key):
    np.testing.assert_array_equal(np.sort(Permutation(n, key)(np.arange(n))), np.arange(n))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 2**62), key=st.integers(0, 2**128), data=st.data())
def test_huge_permutations_stay_in_range_and_do_not_collide(n, key, data):
    indices = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=50))
    values = Permutation(n, key)(np.array(indices, dtype=np.int64)).tolist()
    assert len(set(values)) == len(indices)
    assert all(0 <= value < n for value in values)


def slow_permutation(n, key, index):
    """The same network in Python's own integers, one value at a time."""
    half = max(2, ((n - 1).bit_length() + 1) // 2)
    digest = blake2b(b"%d" % key, digest_size=64, person=b"ptm-dist feistel").digest()
    keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 64, 8)]
    word = 2**64 - 1
    while True:
        left, right = index >> half, index & (2**half - 1)
        for round_key in keys:
            x = right ^ round_key
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
            x ^= x >> 31
            left, right = right, left ^ (x & (2**half - 1))
        index = (left << half) | right
        if index < n:
            return index


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 2**62), key=st.integers(0, 2**128), data=st.data())
def test_vectorised_arithmetic_equals_exact_integers(n, key, data):
    index = data.draw(st.integers(0, n - 1))
    assert Permutation(n, key)(np.array([index]))[0] == slow_permutation(n, key, index)


def test_the_order_of_published_runs_never_changes():
    assert derive_key(1234, "train", 0) == 173159158950695970198183394758001291305
    assert Permutation(10, 5)(np.arange(10)).tolist() == [2, 9, 0, 1, 7, 6, 8, 5, 3, 4]
    assert SampleOrder(10**12, 1234, "train", "global").samples(10**12 - 2, 10**12 + 2).tolist() == [
        679018243328,
        693806634111,
        747297849487,
        719832101193,
    ]


def test_all_orders_of_four_samples_are_equally_likely():
    draws = 4800
    seen = Counter(tuple(Permutation(4, derive_key(seed))(np.arange(4)).tolist()) for seed in range(draws))
    expected = draws / factorial(4)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in permutations(range(4)))
    assert chi_square < 49.7  # 23 degrees of freedom: one in a thousand


def test_neighbours_are_spread_over_the_whole_data_set():
    n = 100_000
    values = Permutation(n, 3)(np.arange(n))
    counts = np.bincount(values[:10_000] * 100 // n, minlength=100)
    assert ((counts - 100.0) ** 2 / 100).sum() < 148.2  # 99 degrees of freedom: one in a thousand
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_shapes_are_kept_and_bad_indices_refused():
    permute = Permutation(9, 1)
    assert permute(np.arange(6, dtype=np.int32).reshape(2, 3)).shape == (2, 3)
    assert permute(np.empty(0, dtype=np.int64)).size == 0
    with pytest.raises(IndexError):
        permute(np.array([9]))
    with pytest.raises(IndexError):
        permute(np.array([-1]))
    with pytest.raises(ValueError):
        Permutation(0, 1)


def test_keys_depend_on_type_order_and_boundaries_of_their_parts():
    keys = [(1, "1"), ("1", 1), (11,), ("11",), ("a", "b"), ("ab",), (7, 1), (8, 0), (-7, 1)]
    assert len({derive_key(*parts) for parts in keys}) == len(keys)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40), cuts=st.lists(st.integers(0, 120), max_size=6), shuffle=st.sampled_from(["global", "none"])
)
def test_any_cuts_give_the_same_endless_order(n, cuts, shuffle):
    order = SampleOrder(n, 7, "train", shuffle)
    edges = [0, *sorted(cuts), 120]
    pieces = [order.samples(begin, end) for begin, end in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), order.samples(0, 120))


def test_every_epoch_reads_every_sample_once_in_its_own_order():
    order = SampleOrder(50, 7, "train", "global")
    epochs = order.samples(0, 200).reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert [order.epoch(counter) for counter in (0, 49, 50, 199)] == [0, 0, 1, 3]


def test_seeds_sources_and_epochs_have_unrelated_orders():
    first = SampleOrder(50, 7, "train", "global")
    assert first.samples(50, 100).tolist() != SampleOrder(50, 8, "train", "global").samples(0, 50).tolist()
    assert first.samples(0, 50).tolist() != SampleOrder(50, 7, "other", "global").samples(0, 50).tolist()


def test_without_shuffling_samples_come_as_they_are_stored():
    assert SampleOrder(3, 7, "train", "none").samples(1, 8).tolist() == [1, 2, 0, 1, 2, 0, 1]


def test_a_batch_of_a_huge_data_set_needs_no_memory_for_the_rest():
    assert SampleOrder(10**15, 1, "train", "global").samples(10**18, 10**18 + 64).size == 64
