"""Next-token prediction over the concatenation of all documents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX, Sample, SampleBatch, check_indices
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
        document_attention: say in batches to which document each position belongs. The last token of a document
            still predicts the first of the next.

    Raises:
        DataError: the shards hold too few tokens for a single sample.
    """

    def __init__(
        self, shards: ShardSet, sequence_length: int, *, keep_tail: bool = False, document_attention: bool = False
    ) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}; a sample has at least one position")
        self._shards = shards
        self._sequence_length = sequence_length
        self._document_attention = document_attention
        whole, tail = divmod(max(shards.num_tokens - 1, 0), sequence_length)
        self._count = whole + (1 if keep_tail and tail else 0)
        if self._count == 0:
            needed = 2 if keep_tail else sequence_length + 1
            raise DataError(
                f"{shards.location} holds {shards.num_tokens} tokens, but one sample of "
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
        batch = self.batch(np.array([index]), np.array([epoch]))
        return batch.only_sample(self._document_starts(index * self._sequence_length))

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The windows at `indices`, [n]; the same in every epoch.

        Raises:
            IndexError: there is no such window.
            DataError: a shard that they lie in is missing or damaged.
        """
        check_indices(indices, self._count)
        count, length = indices.size, self._sequence_length
        begins = indices * length
        windows = self._windows(begins)
        inputs, labels = windows[:, :-1].copy(), windows[:, 1:].copy()
        predicted = np.minimum(self._shards.num_tokens - 1 - begins, length)
        for row in np.flatnonzero(predicted < length).tolist():  # only the tail ends before its window does
            inputs[row, predicted[row] :] = 0
            labels[row, predicted[row] :] = IGNORE_INDEX
        return SampleBatch(
            inputs,
            labels,
            np.full(count, length, dtype=np.int64),
            np.zeros((count, length), dtype=np.int64),
            np.full(count, IGNORE_INDEX, dtype=np.int64),
            self._documents(begins, predicted) if self._document_attention else None,
        )

    def samples_before(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As of :class:`data_pipeline.samples.ShardSamples`."""
        return np.minimum(-(-positions // self._sequence_length), self._count)

    def shards_of(self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> list[tuple[int, ...]]:
        """Numbers of the shards that each window is read from."""
        check_indices(indices, self._count)
        begins = indices * self._sequence_length
        return self._shards.shards_of(begins, np.minimum(begins + self._sequence_length + 1, self._shards.num_tokens))

    def _windows(self, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """S + 1 tokens from each position on, [n, S + 1]; of the tail, as many as there are, and then zeros."""
        size = self._sequence_length + 1
        whole = begins + size <= self._shards.num_tokens
        if whole.all():
            return self._shards.rows(begins, size)
        windows = np.zeros((begins.size, size), dtype=np.int64)
        windows[whole] = self._shards.rows(begins[whole], size)
        tail = self._shards.tokens(int(begins.max()), self._shards.num_tokens)
        windows[~whole, : tail.size] = tail
        return windows

    def _documents(self, begins: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the document within its row to which each position belongs, [n, S]."""
        starts = np.zeros((begins.size, self._sequence_length), dtype=np.int64)
        for row, begin in zip(starts, begins.tolist(), strict=True):
            row[self._document_starts(begin)] = 1
        short = np.flatnonzero(predicted < self._sequence_length)
        starts[short, predicted[short]] = 1
        starts[:, 0] = 0
        return np.cumsum(starts, axis=1)

    def _document_starts(self, begin: int) -> NDArray[np.int64]:
        """Positions at which a document starts in the window from `begin` on."""
        end = min(begin + self._sequence_length, self._shards.num_tokens - 1)
        return self._shards.document_starts(begin, end) - begin
