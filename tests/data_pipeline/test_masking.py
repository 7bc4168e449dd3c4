from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.masking import MaskingPolicy, Vocabulary, mask_batch
from data_pipeline.samples.randomness import KeyedDraws, Purpose, SampleKeys
from data_pipeline.samples.whole_words import draw_ngrams
from tests.data_pipeline import chi_square

VOCABULARY = Vocabulary(300, frozenset({0, 1, 2, 150, 299}), mask_id=150)
LENGTH = 500


def keys_of(draws):
    """Keys of so many samples."""
    return SampleKeys(1234, "mlm", "train", 0)(np.arange(draws), np.zeros(draws, dtype=int))


def sequence(length=LENGTH, seed=0, special=(0, -1), words=0.6):
    """A sequence of ordinary ids with special ones at some places, and where its words start."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(VOCABULARY.ordinary_ids, length)
    tokens[list(special)] = 2
    return tokens, rng.random(length) < words


def mask(policy, draws, text=None, *, at_once=100):
    """Inputs and labels of so many draws, [draws, length]."""
    tokens, word_starts = (np.tile(row, (at_once, 1)) for row in (text or sequence()))
    parts = []
    for keys in np.split(keys_of(draws), range(at_once, draws, at_once)):
        size = keys.size
        starts = None if policy.unit == "token" else word_starts[:size]
        lengths = np.full(size, tokens.shape[1])
        parts.append(mask_batch(tokens[:size], lengths, starts, policy, VOCABULARY, keys))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def chosen(policy, draws, text=None):
    """Which positions each of so many draws hides, [draws, length]."""
    return mask(policy, draws, text)[1] != IGNORE_INDEX


def words_of(maskable, word_starts):
    """Lists of the positions of each word, one after the other in plain Python."""
    words = []
    for position in range(len(maskable)):
        if not maskable[position]:
            continue
        if not words or word_starts[position] or words[-1][-1] != position - 1:
            words.append([])
        words[-1].append(position)
    return words


texts = st.integers(1, 60).flatmap(
    lambda length: st.tuples(
        st.lists(st.integers(0, 299), min_size=length, max_size=length),
        st.lists(st.booleans(), min_size=length, max_size=length),
    )
)
batches = st.lists(texts, min_size=1, max_size=4)
policies = st.builds(
    MaskingPolicy,
    fraction=st.floats(0.01, 1),
    max_predictions=st.none() | st.integers(1, 20),
    unit=st.sampled_from(["token", "word", "ngram"]),
    max_ngram=st.integers(1, 5),
    mask_share=st.floats(0, 0.6),
    random_share=st.floats(0, 0.4),
)


def masked(batch, policy, key):
    """The rows of a batch of texts of several lengths, each as (tokens, word starts, inputs, labels)."""
    lengths = np.array([len(tokens) for tokens, _ in batch])
    tokens = np.full((len(batch), lengths.max()), 7)  # padding of an ordinary id: only the lengths protect it
    word_starts = np.ones(tokens.shape, dtype=bool)
    for row, (ids, starts) in enumerate(batch):
        tokens[row, : len(ids)], word_starts[row, : len(ids)] = ids, starts
    given_tokens = tokens.copy()
    starts = None if policy.unit == "token" else word_starts
    inputs, labels = mask_batch(tokens, lengths, starts, policy, VOCABULARY, keys_of(key + len(batch))[key:])
    np.testing.assert_array_equal(tokens, given_tokens)
    for row, length in enumerate(lengths):
        assert (labels[row, length:] == IGNORE_INDEX).all()
        assert (inputs[row, length:] == 7).all()
        yield tuple(column[row, :length] for column in (tokens, word_starts, inputs, labels))


@settings(deadline=None, max_examples=150)
@given(batch=batches, policy=policies, key=st.integers(0, 99))
def test_labels_are_the_tokens_that_were_hidden_and_nothing_else_changes(batch, policy, key):
    for tokens, _, inputs, labels in masked(batch, policy, key):
        hidden = labels != IGNORE_INDEX
        np.testing.assert_array_equal(np.where(hidden, labels, inputs), tokens)
        assert not VOCABULARY.is_special[tokens[hidden]].any()
        changed = inputs[hidden] != labels[hidden]
        seen = inputs[hidden][changed]
        assert not VOCABULARY.is_special[seen[seen != VOCABULARY.mask_id]].any()


@settings(deadline=None, max_examples=150)
@given(batch=batches, policy=policies, key=st.integers(0, 99))
def test_as_many_tokens_are_hidden_as_the_count_rule_says(batch, policy, key):
    for tokens, word_starts, _, labels in masked(batch, policy, key):
        maskable = ~VOCABULARY.is_special[tokens]
        budget = max(1, round(len(tokens) * policy.fraction))
        budget = budget if policy.max_predictions is None else min(policy.max_predictions, budget)
        hidden = labels != IGNORE_INDEX
        if policy.unit == "token":
            assert hidden.sum() == min(budget, maskable.sum())
            continue
        assert hidden.sum() <= budget
        words = words_of(maskable, word_starts)
        assert all(hidden[word].all() or not hidden[word].any() for word in words)
        # Nothing more would have fitted: every word that is left is longer than what is left of the budget.
        assert all(len(word) > budget - hidden.sum() for word in words if not hidden[word].any())


@settings(deadline=None, max_examples=100)
@given(batch=batches, policy=policies, key=st.integers(0, 99))
def test_a_row_is_masked_the_same_alone_and_in_any_batch(batch, policy, key):
    together = list(masked(batch, policy, key))
    for row, (_, _, inputs, labels) in enumerate(together):
        ((_, _, lone_inputs, lone_labels),) = masked(batch[row : row + 1], policy, key + row)
        np.testing.assert_array_equal(inputs, lone_inputs)
        np.testing.assert_array_equal(labels, lone_labels)


@pytest.mark.parametrize(
    ("length", "limit", "count"),
    [
        (1, None, 1),
        (3, None, 1),
        (10, None, 2),
        (30, None, 4),
        (50, None, 8),
        (128, 20, 19),
        (512, None, 77),
        (512, 76, 76),
    ],
)
def test_counts_are_those_of_the_published_code(length, limit, count):
    # 1.5 and 4.5 round to the even neighbour, as Python does; 7.5 to 8.
    assert MaskingPolicy(max_predictions=limit).predictions(length) == count


@pytest.mark.parametrize("unit", ["token", "word", "ngram"])
def test_a_special_token_is_never_hidden(unit):
    text = sequence(special=range(0, LENGTH, 7))
    assert not chosen(MaskingPolicy(unit=unit), 300, text)[:, ::7].any()


def test_all_positions_are_hidden_equally_often():
    hidden = chosen(MaskingPolicy(), 2000)
    assert (hidden.sum(1) == 75).all()
    assert chi_square.subset_fits(hidden[:, 1:-1].sum(0), 2000)


def test_all_words_of_one_length_are_hidden_equally_often():
    tokens, _ = sequence(special=())
    pairs = np.arange(LENGTH) % 2 == 0
    hidden = chosen(MaskingPolicy(unit="word"), 2000, (tokens, pairs))
    assert (hidden.sum(1) == 74).all()  # of a budget of 75
    np.testing.assert_array_equal(hidden[:, ::2], hidden[:, 1::2])
    assert chi_square.subset_fits(hidden[:, ::2].sum(0), 2000)


def test_of_the_hidden_tokens_80_percent_are_masks_10_random_and_10_kept():
    inputs, labels = mask(MaskingPolicy(), 2000)
    hidden = labels != IGNORE_INDEX
    masks = int((inputs[hidden] == VOCABULARY.mask_id).sum())
    same = int((inputs[hidden] == labels[hidden]).sum())
    assert hidden.sum() == 150_000
    # One random id in 295 is the token that it replaces.
    shares = [0.8, 0.1 + 0.1 / 295, 0.1 - 0.1 / 295]
    assert chi_square.fits([masks, same, 150_000 - masks - same], shares)


def test_what_stands_in_a_hidden_place_does_not_depend_on_where_it_is():
    hidden = chosen(MaskingPolicy(), 4000)
    inputs, _ = mask(MaskingPolicy(), 4000)
    shown = np.where(hidden, inputs == VOCABULARY.mask_id, False)[:, 1:-1]
    for half in (slice(0, 249), slice(249, 498)):
        masks, places = shown[:, half].sum(), hidden[:, 1:-1][:, half].sum()
        assert chi_square.fits([masks, places - masks], [0.8, 0.2])


def test_two_places_are_hidden_together_as_often_as_chance_has_it():
    # Two given places of n are both among k with the probability k (k - 1) / (n (n - 1)).
    hidden = chosen(MaskingPolicy(), 20_000, sequence(40, special=()))
    both = hidden.T.astype(int) @ hidden.astype(int)
    counts = both[np.triu_indices(40, 1)]
    assert counts.sum() == 20_000 * 6 * 5 / 2
    # Each pair is a nearly independent binomial count; its spread is 780 times its variance.
    share = 6 * 5 / (40 * 39)
    spread = ((counts - 20_000 * share) ** 2).sum() / (20_000 * share * (1 - share))
    assert 0.8 * counts.size < spread < 1.2 * counts.size


def test_random_tokens_are_all_ordinary_ids_equally_often():
    policy = MaskingPolicy(fraction=1.0, mask_share=0.0, random_share=1.0)
    drawn = mask(policy, 2000)[0][:, 1:-1]
    counts = np.bincount(drawn.ravel(), minlength=300)
    assert counts[VOCABULARY.is_special].sum() == 0
    assert chi_square.fits(counts[~VOCABULARY.is_special], np.ones(295))


def test_ngrams_of_n_words_are_drawn_with_a_probability_proportional_to_1_over_n():
    # Compared are lengths as drawn, the one cut by the end of the budget included.
    words = np.random.default_rng(1).geometric(0.7, 360)
    counts = Counter()
    for key in keys_of(3000):
        ngrams = draw_ngrams(words, np.zeros_like(words), 77, 3, KeyedDraws(key, Purpose.NGRAMS))
        counts.update(ngram.drawn for ngram in ngrams)
    assert set(counts) == {1, 2, 3}
    assert sum(counts.values()) > 100_000
    assert chi_square.fits([counts[n] for n in (1, 2, 3)], [1, Fraction(1, 2), Fraction(1, 3)])


def test_the_masks_of_a_text_show_the_ngrams_that_were_drawn():
    # With three predictions among 4000 words of one token the whole course can be read from the mask: a 3-gram is
    # drawn first (p3); or a 2-gram, or a 1-gram before anything longer, leaves 2 + 1; or two 1-grams leave 1 + 1 + 1.
    # Neighbours that look like one n-gram are rarer than one in 600, far below what 2000 draws can resolve.
    policy = MaskingPolicy(fraction=0.5, max_predictions=3, unit="ngram")
    text = sequence(4000, special=(), words=1.1)
    shapes = Counter()
    for row in chosen(policy, 2000, text):
        runs = np.diff(np.flatnonzero(np.diff(row.astype(int), prepend=0, append=0)))[::2]
        shapes[tuple(sorted(runs.tolist()))] += 1
    p1, p2, p3 = 6 / 11, 3 / 11, 2 / 11
    counts = [shapes[(3,)], shapes[(1, 2)], shapes[(1, 1, 1)]]
    assert chi_square.fits(counts, [p3, p2 + p1 * (p2 + p3), p1 * p1])


@settings(deadline=None, max_examples=200)
@given(
    words=st.lists(st.integers(1, 4), min_size=1, max_size=50),
    breaks=st.lists(st.booleans(), min_size=50, max_size=50),
    budget=st.integers(1, 60),
    longest=st.integers(1, 6),
    key=st.integers(0, 99),
)
def test_ngrams_do_not_overlap_nor_leave_their_run_nor_exceed_the_budget(words, breaks, budget, longest, key):
    runs = np.cumsum(breaks[: len(words)])
    ngrams = draw_ngrams(np.array(words), runs, budget, longest, np.random.default_rng(key))
    covered = [word for start, _, taken in ngrams for word in range(start, start + taken)]
    assert len(covered) == len(set(covered))
    assert sum(words[word] for word in covered) <= budget
    for number, (start, drawn, taken) in enumerate(ngrams):
        assert len(set(runs[start : start + drawn])) == 1
        assert 1 <= drawn <= min(longest, len(words))
        assert taken == drawn or number == len(ngrams) - 1


@pytest.mark.parametrize(
    ("unit", "first", "total"),
    [
        ("token", [4, 11, 23, 25, 38, 41, 53, 54], 41706),
        ("word", [23, 24, 25, 26, 27, 38, 39, 65], 41049),
        ("ngram", [18, 19, 20, 21, 22, 23, 24, 78], 40018),
    ],
)
def test_the_masks_of_published_runs_never_change(unit, first, total):
    tokens = 3 + np.arange(LENGTH) % 147
    inputs, labels = mask(MaskingPolicy(unit=unit), 1, (tokens, np.arange(LENGTH) % 5 % 3 == 0))
    assert np.flatnonzero(labels[0] != IGNORE_INDEX)[:8].tolist() == first
    assert int(inputs.sum()) == total


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"mask_share": -0.1},
        {"mask_share": 0.8, "random_share": 0.3},
        {"max_ngram": 0},
        {"max_predictions": 0},
    ],
)
def test_policies_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError):
        MaskingPolicy(**options)
