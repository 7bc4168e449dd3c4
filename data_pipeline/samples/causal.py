"""Next-token prediction over the concatenation of all documents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX, Sample
from data_pipeline.shards import ShardSet


class CausalSamples:
    """Windows of a token stream: position i of sample k reads token k*S + i and predicts token k*S + i + 1.

    Neighbouring windows share one token, so every token but the first is predicted exactly once.
    Documents follow each other without padding and may cross windows and shards.

    Args:
        shards: the tokens.
        sequence_length: S, positions of a sample.
        keep_tail: also give the tokens behind the last whole window, as a sample filled up with token 0 and
            labels ``IGNORE_INDEX``; for validation, where nothing may be dropped.

    Raises:
        DataError: the shards hold too few tokens for a single sample.
    """

    def __init__(self, shards: ShardSet, sequence_length: int, *, keep_tail: bool = False) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}; a sample has at least one position")
        self._shards = shards
        self._sequence_length = sequence_length
        whole, tail = divmod(max(shards.num_tokens - 1, 0), sequence_length)
        self._count = whole + (1 if keep_tail and tail else 0)
        if self._count == 0:
            needed = 2 if keep_tail else sequence_length + 1
            raise DataError(
                f"{shards.directory} holds {shards.num_tokens} tokens, but one sample of "
                f"sequence length {sequence_length} needs {needed}: build it from more text, "
                "or shorten data.sequence_length"
            )

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self._sequence_length

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by role."""
        return self._shards.tokenizer.special_ids

    def __len__(self) -> int:
        return self._count

    def sample(self, index: int, epoch: int) -> Sample:
        """Window `index`, from 0; the same in every epoch.

        Raises:
            IndexError: there is no such window.
            DataError: a shard that it lies in is missing or damaged.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"sample {index} is outside [0, {self._count})")
        length = self._sequence_length
        begin = index * length
        end = min(begin + length + 1, self._shards.num_tokens)
        tokens = self._shards.tokens(begin, end)
        inputs = np.zeros(length, dtype=np.int64)
        labels = np.full(length, IGNORE_INDEX, dtype=np.int64)
        inputs[: tokens.size - 1] = tokens[:-1]
        labels[: tokens.size - 1] = tokens[1:]
        starts = self._shards.document_starts(begin, end - 1) - begin
        segments = np.zeros(length, dtype=np.int64)
        return Sample(inputs, labels, starts, length, segments, IGNORE_INDEX)
