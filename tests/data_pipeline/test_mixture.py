from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import Mixture, integer_weights

WEIGHTS = st.lists(st.integers(0, 7), min_size=3, max_size=3).filter(any)


@st.composite
def levels(draw):
    steps = draw(st.lists(st.integers(1, 40), max_size=3))
    starts = [0, *np.cumsum(steps).tolist()]
    return [(start, draw(WEIGHTS)) for start in starts]


@settings(deadline=None, max_examples=200)
@given(levels=levels())
def test_no_sample_of_a_source_is_skipped_or_repeated_when_weights_change(levels):
    sources, turns = Mixture(levels).picks(0, 200)
    for source in range(3):
        own = turns[sources == source]
        np.testing.assert_array_equal(own, np.arange(own.size))


@settings(deadline=None, max_examples=200)
@given(levels=levels(), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_any_cuts_give_the_same_mixture_and_counts(levels, cuts):
    mixture = Mixture(levels)
    sources, turns = mixture.picks(0, 200)
    edges = [0, *sorted(cuts), 200]
    pieces = [mixture.picks(begin, end) for begin, end in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([piece[0] for piece in pieces]), sources)
    np.testing.assert_array_equal(np.concatenate([piece[1] for piece in pieces]), turns)
    for cut in cuts:
        np.testing.assert_array_equal(mixture.picked(cut), np.bincount(sources[:cut], minlength=3))


@settings(deadline=None, max_examples=100)
@given(weights=WEIGHTS, end=st.integers(1, 400))
def test_every_stretch_of_a_mixture_has_nearly_its_proportions(weights, end):
    picked = Mixture([(0, weights)]).picked(end)
    # A source is due in the middle of its share; a few sources due at once displace one another by fewer places.
    assert np.abs(picked - end * np.array(weights) / sum(weights)).max() < 2


def test_weights_hold_exactly_over_each_cycle():
    sources, _ = Mixture([(0, (7, 2, 1))]).picks(0, 1000)
    for begin in range(0, 1000, 10):
        assert np.bincount(sources[begin : begin + 10]).tolist() == [7, 2, 1]


def test_the_middle_of_a_huge_run_is_found_at_once():
    mixture = Mixture([(0, (3, 1)), (10**15, (1, 1))])
    sources, turns = mixture.picks(10**18, 10**18 + 2)
    assert sorted(sources.tolist()) == [0, 1]
    taken = 3 * 10**15 // 4 + (10**18 - 10**15) // 2
    assert turns[sources == 0].tolist() == [taken]


@pytest.mark.parametrize(
    ("given", "expected"),
    [([0.7, 0.2, 0.1], (7, 2, 1)), ([2, 4], (1, 2)), ([1], (1,)), ([0, 5], (0, 1)), ([0.3333, 0.6667], (3333, 6667))],
)
def test_decimal_weights_become_the_smallest_integers(given, expected):
    assert integer_weights(given) == expected


@pytest.mark.parametrize("given", [[0, 0], [-1, 2], [0.12345678, 1]])
def test_weights_that_make_no_mixture_are_refused(given):
    with pytest.raises(ValueError, match="weights"):
        integer_weights(given)


@pytest.mark.parametrize("levels", [[], [(1, (1,))], [(0, (1,)), (0, (2,))], [(0, (1,)), (5, (1, 2))]])
def test_levels_that_do_not_fit_are_refused(levels):
    with pytest.raises(ValueError, match="weight"):
        Mixture(levels)
