"""Stretches of text -> a batch of masked samples: classify, A, separator; of a pair B, separator too; then padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.samples import SampleBatch
from data_pipeline.samples.masking import MaskingPolicy, Vocabulary, mask_batch
from data_pipeline.samples.reading import Stretches, read_tokens, read_word_starts
from data_pipeline.shards import ShardSet

_ROLES = ("pad", "classify", "separator", "mask")


class Frame:
    """Puts special ids around text, and masks it.

    Args:
        shards: the text; its tokenizer needs ids for pad, classify, separator and mask.
        sequence_length: S, positions of a sample.
        policy: what to mask, and how.
        texts: stretches in a sample, 1 or 2.

    Attributes:
        shards: the text.
        sequence_length: S.
        room: tokens of text in a sample, at most.

    Raises:
        DataError: the tokenizer lacks an id, or a sample has no room for text.
    """

    def __init__(self, shards: ShardSet, sequence_length: int, policy: MaskingPolicy, texts: int) -> None:
        ids = shards.tokenizer.special_ids
        missing = [role for role in _ROLES if role not in ids]
        if missing:
            raise DataError(
                f"the tokenizer of {shards.location} has no special id for {', '.join(missing)}, which masked "
                "language modelling needs: train one with `ptm tokenizer train` and build the shards again with "
                "`ptm data build`"
            )
        self.shards = shards
        self.sequence_length = sequence_length
        self.room = sequence_length - 1 - texts
        if self.room < texts:
            raise DataError(
                f"data.sequence_length={sequence_length} leaves no room for text beside {1 + texts} special tokens; "
                f"use at least {1 + 2 * texts}"
            )
        self._policy = policy
        self._vocabulary = Vocabulary(shards.tokenizer.vocab_size, frozenset(ids.values()), ids["mask"])
        self._pad, self._classify, self._separator = ids["pad"], ids["classify"], ids["separator"]

    def batch(self, texts: list[Stretches], pair_labels: NDArray[np.int64], keys: NDArray[np.uint64]) -> SampleBatch:
        """The masked samples of one or two stretches of text each.

        Args:
            texts: the first stretch of every sample, and of pairs the second; of at most `room` tokens together.
            pair_labels: of each sample, [n].
            keys: what the masks of each follow from, [n].

        Raises:
            DataError: a shard that they lie in is missing or damaged.
        """
        count, length = pair_labels.size, self.sequence_length
        rows = np.arange(count)
        tokens = np.full((count, length), self._pad, dtype=np.int64)
        words = None if self._policy.unit == "token" else np.ones((count, length), dtype=np.bool_)
        ends = np.zeros(count, dtype=np.int64)
        tokens[:, 0] = self._classify
        for text in texts:
            places = ends + 1
            ends = places + text.sizes
            read_tokens(self.shards, text, rows * length + places, tokens)
            if words is not None:
                read_word_starts(self.shards, text, rows * length + places, words)
            tokens[rows, ends] = self._separator
        lengths = ends + 1
        segments = np.zeros((count, length), dtype=np.int64)
        if len(texts) == 2:
            columns = np.arange(length)
            second = lengths - 1 - texts[1].sizes
            segments[(columns >= second[:, None]) & (columns < lengths[:, None])] = 1
        inputs, labels = mask_batch(tokens, lengths, words, self._policy, self._vocabulary, keys)
        return SampleBatch(inputs, labels, lengths, segments, pair_labels, None)

    def document_starts(self, texts: list[Stretches]) -> NDArray[np.int64]:
        """Positions in the sample of a batch of one at which a document starts, ascending, int64."""
        starts = []
        place = 1
        for text in texts:
            begin, end = int(text.begins[0]), int(text.ends[0])
            starts.append(self.shards.document_starts(begin, end) - begin + place)
            place += end - begin + 1
        return np.concatenate(starts)
