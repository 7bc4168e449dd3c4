"""What accuracy one has without a model, and how sure one can be to have more."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.samples import IGNORE_INDEX, Samples
from data_pipeline.shards import ShardSet

_CHUNK = 1 << 20
"""Tokens that are counted at a time."""


def commonest_token(*sets: ShardSet) -> int:
    """The most frequent id of some data sets of one tokenizer, special ids left out."""
    tokenizer = sets[0].tokenizer
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for shards in sets:
        for begin in range(0, shards.num_tokens, _CHUNK):
            tokens = shards.tokens(begin, min(begin + _CHUNK, shards.num_tokens))
            counts += np.bincount(tokens, minlength=counts.size)
    counts[list(tokenizer.special_ids.values())] = 0
    return int(counts.argmax())


def unigram_accuracy(token: int, samples: Samples, limit: int | None = None) -> float:
    """Share of the predicted positions that always answering `token` gets right.

    Args:
        token: the answer, see :func:`commonest_token`.
        samples: the validation set.
        limit: its first samples; all of them when left out.
    """
    hits = total = 0
    for index in range(len(samples) if limit is None else min(limit, len(samples))):
        labels = samples.sample(index, 0).labels
        hits += int((labels == token).sum())
        total += int((labels != IGNORE_INDEX).sum())
    return hits / total


def chance_tail(hits: int, trials: int) -> float:
    """Probability that guessing by coin gets at least `hits` of `trials` right: the exact binomial tail."""
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - trials * math.log(2)
        for k in range(hits, trials + 1)
    ]
    highest = max(logs)
    return math.exp(highest) * math.fsum(math.exp(log - highest) for log in logs)
