"""Which tokens of a text are hidden, and what stands in their place: tokens, whole words or n-grams of words.

Everything random is drawn as doubles from one generator, so the masks of a sample are a function of its key.
Sources: BERT (arXiv 1810.04805), section 3.1; whole words as in Google's BERT code; n-grams as in ALBERT
(arXiv 1909.11942), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples import IGNORE_INDEX

MaskUnit = Literal["token", "word", "ngram"]

_TRIES = 100
"""Places tried for an n-gram. At usual shares of masked text the first is free four times in five."""


@dataclass(frozen=True)
class MaskingPolicy:
    """How much of a sequence is predicted, in which units, and what the model sees instead.

    Attributes:
        fraction: share of a sequence's tokens to predict, of all tokens, special ones included.
        max_predictions: at most so many of one sequence; None for no limit.
        unit: "token" hides single tokens, "word" all tokens of a word, "ngram" one to `max_ngram` words in a row.
        max_ngram: words of the longest n-gram; n words are drawn with a probability proportional to 1/n.
        mask_share: share of the predicted tokens that become the mask id.
        random_share: share that become any ordinary id; the rest stay as they are.

    Raises:
        ValueError: shares outside [0, 1], or limits below 1.
    """

    fraction: float = 0.15
    max_predictions: int | None = None
    unit: MaskUnit = "token"
    max_ngram: int = 3
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.fraction, self.mask_share, self.random_share, self.mask_share + self.random_share)
        if min(shares) < 0 or max(shares) > 1 or self.fraction == 0:
            raise ValueError(f"shares of masked tokens {shares} must lie in [0, 1]")
        if self.max_ngram < 1 or (self.max_predictions is not None and self.max_predictions < 1):
            raise ValueError(f"max_ngram {self.max_ngram} and max_predictions {self.max_predictions} must be positive")

    def predictions(self, length: int) -> int:
        """How many tokens of a sequence of `length` tokens to predict: the rule of Google's BERT code."""
        wanted = max(1, round(length * self.fraction))
        return wanted if self.max_predictions is None else min(wanted, self.max_predictions)


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of a tokenizer.

    Attributes:
        size: number of ids.
        special_ids: ids that are no text: never hidden, never put in a token's place at random.
        mask_id: the id that stands for a hidden token.
    """

    size: int
    special_ids: frozenset[int]
    mask_id: int

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """Whether an id is special, [size]."""
        special = np.zeros(self.size, dtype=np.bool_)
        special[sorted(self.special_ids)] = True
        return special

    @cached_property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """The ids of text, ascending."""
        return np.flatnonzero(~self.is_special)


class Ngram(NamedTuple):
    """Words [start, start + words) of a text; `drawn` words were drawn, fewer are taken where the budget ends."""

    start: int
    drawn: int
    words: int


def mask_tokens(
    tokens: NDArray[np.int64],
    maskable: NDArray[np.bool_],
    word_starts: NDArray[np.bool_],
    policy: MaskingPolicy,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hide tokens of one sequence.

    As many tokens as the policy says are hidden, fewer only where there are not so many, or where no whole word
    fits into what is left.

    Args:
        tokens: the sequence without padding, [n].
        maskable: which tokens may be hidden, [n]; the others end words.
        word_starts: which tokens start a word, [n]; used unless the unit is the token.
        policy: how much, and how.
        vocabulary: the ids to put in place.
        rng: from which everything is drawn.

    Returns: what the model reads and what it predicts (``IGNORE_INDEX`` where nothing), both [n], int64.
    """
    candidates = np.flatnonzero(maskable)
    budget = policy.predictions(tokens.size)
    if policy.unit == "token":
        chosen = candidates[_smallest(rng.random(candidates.size), budget)]
    else:
        chosen = candidates[_whole_words(candidates, word_starts, budget, policy, rng)]
    inputs = tokens.copy()
    labels = np.full(tokens.size, IGNORE_INDEX, dtype=np.int64)
    labels[chosen] = tokens[chosen]
    inputs[chosen] = _replaced(tokens[chosen], policy, vocabulary, rng)
    return inputs, labels


def draw_ngrams(
    words: NDArray[np.int64], runs: NDArray[np.int64], budget: int, max_ngram: int, rng: np.random.Generator
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
        rng: from which lengths and places are drawn.
    """
    shares = np.cumsum(1 / np.arange(1, min(max_ngram, words.size) + 1))
    lengths = (np.searchsorted(shares, rng.random(budget) * shares[-1], side="right") + 1).tolist()
    ends = [0, *np.cumsum(words).tolist()]
    text = _FreeText(runs.tolist(), rng)
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

    def __init__(self, runs: list[int], rng: np.random.Generator) -> None:
        self.covered = bytearray(len(runs))
        self._runs = runs
        self._rng = rng
        self._uniform: list[float] = []

    def free_place(self, words: int) -> int | None:
        """First of so many free words in one run; None if they are hard to find."""
        places = len(self._runs) - words + 1
        for _ in range(_TRIES):
            start = int(self._draw() * places)
            if self._runs[start] == self._runs[start + words - 1] and self.covered.find(1, start, start + words) < 0:
                return start
        return None

    def _draw(self) -> float:
        if not self._uniform:
            self._uniform = self._rng.random(128).tolist()
        return self._uniform.pop()


def _whole_words(
    candidates: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    budget: int,
    policy: MaskingPolicy,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Which candidates to hide: all or none of each word."""
    follows = np.zeros(candidates.size, dtype=np.bool_)
    follows[1:] = candidates[1:] == candidates[:-1] + 1
    begins = np.flatnonzero(word_starts[candidates] | ~follows)
    words = np.diff(begins, append=candidates.size)
    hidden = np.zeros(words.size, dtype=np.bool_)
    if policy.unit == "ngram" and words.size:
        runs = np.cumsum(~follows, dtype=np.int64)[begins]
        for start, _, taken in draw_ngrams(words, runs, budget, policy.max_ngram, rng):
            hidden[start : start + taken] = True
    _fill(hidden, words, budget - int(words[hidden].sum()), rng)
    return np.repeat(hidden, words)


def _fill(hidden: NDArray[np.bool_], words: NDArray[np.int64], budget: int, rng: np.random.Generator) -> None:
    """Hide more words, in random order, passing over those that exceed what is left of the budget."""
    order = np.flatnonzero(~hidden & (words <= budget))
    if not order.size:
        return
    order = order[np.argsort(rng.random(order.size))]
    while order.size:
        sums = np.cumsum(words[order])
        fitting = int(np.searchsorted(sums, budget, side="right"))
        hidden[order[:fitting]] = True
        budget -= int(sums[fitting - 1]) if fitting else 0
        order = order[fitting:]
        order = order[words[order] <= budget]


def _smallest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the `count` smallest values stand; of independent draws, a uniformly random subset."""
    if count >= values.size:
        return np.arange(values.size)
    return np.argpartition(values, count)[:count]


def _replaced(
    tokens: NDArray[np.int64], policy: MaskingPolicy, vocabulary: Vocabulary, rng: np.random.Generator
) -> NDArray[np.int64]:
    kind, choice = rng.random((2, tokens.size))
    ordinary = vocabulary.ordinary_ids
    replaced = np.where(kind < policy.mask_share + policy.random_share, ordinary[_floor(choice, ordinary.size)], tokens)
    replaced[kind < policy.mask_share] = vocabulary.mask_id
    return replaced


def _floor(uniform: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    return (uniform * count).astype(np.int64)
