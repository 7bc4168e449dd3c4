"""Which tokens of a batch are hidden, and what stands in their place: single tokens, or whole words and n-grams.

The masks of a row are a function of its key and its text: they do not depend on what else is in the batch.
Sources: BERT (arXiv 1810.04805), section 3.1; whole words as in Google's BERT code; n-grams as in ALBERT
(arXiv 1909.11942), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.randomness import Purpose, random_words, uniforms, with_number
from data_pipeline.samples.whole_words import hide_words

MaskUnit = Literal["token", "word", "ngram"]


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
        return int(self.predictions_of(np.array([length]))[0])

    def predictions_of(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens to predict of sequences of such lengths, of the same shape, int64."""
        # Halves go to the even neighbour, as with Python's round.
        wanted: NDArray[np.int64] = np.maximum(np.rint(lengths * self.fraction).astype(np.int64), 1)
        return np.minimum(wanted, self.max_predictions or wanted)


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


def mask_batch(
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    word_starts: NDArray[np.bool_] | None,
    policy: MaskingPolicy,
    vocabulary: Vocabulary,
    keys: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hide tokens of each row.

    As many tokens as the policy says are hidden, fewer only where there are not so many, or where no whole word
    fits into what is left.

    Args:
        tokens: the sequences, [n, S]; special ids are never hidden, and end words.
        lengths: positions of each row that are no padding, [n].
        word_starts: which tokens start a word, [n, S]; None if the unit is the token, which needs none.
        policy: how much, and how.
        vocabulary: the ids to put in place.
        keys: what the random choices of each row follow from, [n]; see ``randomness.SampleKeys``.

    Returns: what the model reads and what it predicts (``IGNORE_INDEX`` where nothing), both [n, S], int64.
    """
    maskable = ~vocabulary.is_special[tokens]
    maskable &= np.arange(tokens.shape[1]) < lengths[:, None]
    budgets = policy.predictions_of(lengths)
    if word_starts is None:
        hidden = _hide_tokens(maskable, budgets, keys)
    else:
        longest = policy.max_ngram if policy.unit == "ngram" else 0
        hidden = hide_words(maskable, word_starts, budgets, longest, keys)
    places = np.flatnonzero(hidden)
    rows, columns = np.divmod(places, tokens.shape[1])
    inputs, labels = tokens.copy(), np.full(tokens.shape, IGNORE_INDEX, dtype=np.int64)
    predicted = tokens.reshape(-1)[places]
    labels.reshape(-1)[places] = predicted
    inputs.reshape(-1)[places] = _replaced(predicted, keys[rows], columns, policy, vocabulary)
    return inputs, labels


def _hide_tokens(
    maskable: NDArray[np.bool_], budgets: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """The positions of the smallest random words of each row: of independent draws, a uniformly random subset."""
    length = maskable.shape[1]
    places = np.arange(length)
    # No two draws are equal, so that counts are exact.
    draws = with_number(random_words(keys[:, None], Purpose.HIDDEN, places), places, length)
    draws[~maskable] = np.iinfo(np.uint64).max
    last = np.minimum(budgets, maskable.sum(axis=1)) - 1
    limits = np.take_along_axis(np.sort(draws, axis=1), np.maximum(last, 0)[:, None], axis=1)
    return (draws <= limits) & maskable


def _replaced(
    tokens: NDArray[np.int64],
    keys: NDArray[np.uint64],
    places: NDArray[np.int64],
    policy: MaskingPolicy,
    vocabulary: Vocabulary,
) -> NDArray[np.int64]:
    """What the model sees at hidden places, [hidden] like everything given."""
    kind = uniforms(keys, Purpose.REPLACEMENT, places)
    ordinary = vocabulary.ordinary_ids
    other = ordinary[(uniforms(keys, Purpose.RANDOM_ID, places) * ordinary.size).astype(np.int64)]
    replaced = np.where(kind < policy.mask_share + policy.random_share, other, tokens)
    replaced[kind < policy.mask_share] = vocabulary.mask_id
    return replaced
