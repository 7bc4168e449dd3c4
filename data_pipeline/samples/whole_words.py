"""Which words of a batch are hidden: whole words in random order, or n-grams of words first (ALBERT)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples.randomness import Draws, KeyedDraws, Purpose, random_words, with_number

_TRIES = 100
"""Places tried for an n-gram. At usual shares of masked text the first is free four times in five."""

_PLACES = 64
"""Places drawn at a time."""


@dataclass(frozen=True)
class _Words:
    """The words of all rows, one after the other.

    Attributes:
        rows: row of each, ascending, [words].
        columns: where each begins in its row, [words].
        sizes: tokens of each, [words].
        runs: number of the stretch of text in which each stands, without special ids in between, [words].
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    sizes: NDArray[np.int64]
    runs: NDArray[np.int64]


def hide_words(
    maskable: NDArray[np.bool_],
    word_starts: NDArray[np.bool_],
    budgets: NDArray[np.int64],
    max_ngram: int,
    keys: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Which tokens to hide: all or none of each word.

    Args:
        maskable: tokens that may be hidden, [n, S]; the others end words.
        word_starts: tokens that start a word, [n, S].
        budgets: tokens to hide in each row, at most; it is less if no word fits into what is left, [n].
        max_ngram: words of the longest n-gram to hide before single words; 0 for single words only.
        keys: what the random choices of each row follow from, [n].

    Returns: [n, S].
    """
    words = _find_words(maskable, word_starts)
    hidden = np.zeros(words.sizes.size, dtype=np.bool_)
    if max_ngram and hidden.size:
        _hide_ngrams(hidden, words, budgets, max_ngram, keys)
    draws = random_words(keys[words.rows], Purpose.HIDDEN, words.columns)
    _fill(hidden, words, budgets, draws, maskable.shape[1])
    result = np.zeros(maskable.shape, dtype=np.bool_)
    result[maskable] = np.repeat(hidden, words.sizes)
    return result


def _find_words(maskable: NDArray[np.bool_], word_starts: NDArray[np.bool_]) -> _Words:
    opens_run = maskable.copy()
    opens_run[:, 1:] &= ~maskable[:, :-1]
    opens_word = opens_run | (maskable & word_starts)
    places = np.flatnonzero(maskable)
    begins = np.flatnonzero(opens_word.ravel()[places])
    rows, columns = np.divmod(places[begins], maskable.shape[1])
    runs = np.cumsum(opens_run.ravel()[places], dtype=np.int64)[begins]
    return _Words(rows, columns, np.diff(begins, append=places.size), runs)


def _hide_ngrams(
    hidden: NDArray[np.bool_], words: _Words, budgets: NDArray[np.int64], max_ngram: int, keys: NDArray[np.uint64]
) -> None:
    bounds = np.searchsorted(words.rows, np.arange(keys.size + 1)).tolist()
    # A length for each token of the budget, and about as many places.
    draws = KeyedDraws.of_batch(keys, Purpose.NGRAMS, int(budgets.max()) + _PLACES)
    for own, budget, begin, end in zip(draws, budgets.tolist(), bounds[:-1], bounds[1:], strict=True):
        if begin == end:
            continue
        for start, _, taken in draw_ngrams(words.sizes[begin:end], words.runs[begin:end], budget, max_ngram, own):
            hidden[begin + start : begin + start + taken] = True


def _fill(
    hidden: NDArray[np.bool_], words: _Words, budgets: NDArray[np.int64], draws: NDArray[np.uint64], length: int
) -> None:
    """Hide more words of each row in random order, passing over those that exceed what is left of its budget."""
    left = budgets - np.bincount(words.rows, words.sizes * hidden, minlength=budgets.size).astype(np.int64)
    # The highest bits sort by row, the lowest tell the words of a row apart.
    bits = np.uint64(max(int(budgets.size) - 1, 1).bit_length())
    ranks = (draws >> bits) | (words.rows.astype(np.uint64) << (np.uint64(64) - bits))
    order = np.argsort(with_number(ranks, words.columns, length))
    order = order[~hidden[order]]
    while True:
        order = order[words.sizes[order] <= left[words.rows[order]]]
        if not order.size:
            return
        rows, sizes = words.rows[order], words.sizes[order]
        taken = np.cumsum(sizes)
        before = taken - sizes
        fits = taken - before[np.searchsorted(rows, rows)] <= left[rows]
        hidden[order[fits]] = True
        left -= np.bincount(rows[fits], sizes[fits], minlength=left.size).astype(np.int64)
        order = order[~fits]


class Ngram(NamedTuple):
    """Words [start, start + words) of a text; `drawn` words were drawn, fewer are taken where the budget ends."""

    start: int
    drawn: int
    words: int


def draw_ngrams(
    words: NDArray[np.int64], runs: NDArray[np.int64], budget: int, max_ngram: int, draws: Draws
) -> list[Ngram]:
    """N-grams that do not overlap, until their tokens fill the budget.

    The number of words is drawn first, p(n) proportional to 1/n, and then a place for just so many, uniformly among
    all and again if it is taken: where a text has room cannot make n-grams shorter. The one that exceeds the budget
    loses words at its end until it fits, and is the last. Counted as drawn, that one included, the lengths follow
    p(n) without bias (Wald's identity: the end does not look ahead). A text so short or so covered that no free place
    is found in a hundred tries ends the drawing too.

    Args:
        words: tokens of each word, [words].
        runs: number of the run of text in which each word stands, [words]; an n-gram stays within one.
        budget: tokens to cover, at most.
        max_ngram: words of the longest n-gram.
        draws: from which lengths and places are drawn.
    """
    shares = np.cumsum(1 / np.arange(1, min(max_ngram, words.size) + 1))
    lengths = (np.searchsorted(shares, draws.random(budget) * shares[-1], side="right") + 1).tolist()
    ends = [0, *np.cumsum(words).tolist()]
    text = _FreeText(runs.tolist(), draws)
    ngrams = []
    for drawn in lengths:
        start = text.free_place(drawn)
        if start is None:
            break
        stop = start + drawn
        while ends[stop] - ends[start] > budget:
            stop -= 1
        text.covered[start:stop] = b"\1" * (stop - start)
        ngrams.append(Ngram(start, drawn, stop - start))
        budget -= ends[stop] - ends[start]
        if stop < start + drawn or budget == 0:
            break
    return ngrams


class _FreeText:
    """The words of a text that no n-gram covers yet."""

    def __init__(self, runs: list[int], draws: Draws) -> None:
        self.covered = bytearray(len(runs))
        self._runs = runs
        self._draws = _one_by_one(draws)

    def free_place(self, words: int) -> int | None:
        """First of so many free words in one run; None if they are hard to find."""
        runs, covered, draws = self._runs, self.covered, self._draws
        places = len(runs) - words + 1
        for _ in range(_TRIES):
            start = int(next(draws) * places)
            if runs[start] == runs[start + words - 1] and covered.find(1, start, start + words) < 0:
                return start
        return None


def _one_by_one(draws: Draws) -> Iterator[float]:
    while True:
        yield from draws.random(_PLACES).tolist()
