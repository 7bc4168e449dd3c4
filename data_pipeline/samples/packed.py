"""Next-token prediction over documents packed whole into rows (best fit)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.samples import IGNORE_INDEX, Sample, SampleBatch, check_indices
from data_pipeline.samples.packing import pack_documents
from data_pipeline.samples.reading import Stretches, read_tokens
from data_pipeline.shards import ShardSet


class PackedSamples:
    """Rows of whole documents: each token predicts the next of its own document, and nothing across documents.

    Only documents of more than S + 1 tokens are cut. The last token of a document, its end-of-document id, stays
    between it and the next and predicts nothing; every other token but the first of a document is predicted once.

    Args:
        shards: the tokens.
        sequence_length: S, positions of a sample.
        document_attention: say in batches to which piece of a document each position belongs.
        cache: folder that keeps which documents stand together; None finds it anew and holds it in memory.

    Raises:
        DataError: no document has two tokens, or a shard is missing or damaged.
    """

    def __init__(
        self,
        shards: ShardSet,
        sequence_length: int,
        *,
        document_attention: bool = False,
        cache: Path | None = None,
    ) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}; a sample has at least one position")
        self._shards = shards
        self._sequence_length = sequence_length
        self._document_attention = document_attention
        self._pad = shards.tokenizer.special_ids.get("pad", 0)
        self._rows = pack_documents(shards, sequence_length, cache)
        if not len(self._rows):
            raise DataError(f"no document in {shards.location} has two tokens: build it from more text")

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self._sequence_length

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by role."""
        return self._shards.tokenizer.special_ids

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int, epoch: int) -> Sample:
        """Row `index`, from 0; the same in every epoch.

        Raises:
            IndexError: there is no such row.
            DataError: the shard that it lies in is missing or damaged.
        """
        batch = self.batch(np.array([index]), np.array([epoch]))
        first, last = self._rows.starts[index : index + 2].tolist()
        begins, lengths = self._rows.begins[first:last], self._rows.lengths[first:last]
        is_start = [self._shards.document_starts(begin, begin + 1).size == 1 for begin in begins.tolist()]
        return batch.only_sample((np.cumsum(lengths) - lengths)[is_start])

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The rows at `indices`, [n]; the same in every epoch.

        Raises:
            IndexError: there is no such row.
            DataError: a shard that they lie in is missing or damaged.
        """
        check_indices(indices, len(self))
        count, length = indices.size, self._sequence_length
        row_of, text = self._pieces(indices)
        before = np.cumsum(text.sizes) - text.sizes
        places = before - before[np.searchsorted(row_of, row_of)]
        totals = np.bincount(row_of, text.sizes, minlength=count).astype(np.int64)
        tokens = np.full((count, length + 1), self._pad, dtype=np.int64)
        read_tokens(self._shards, text, row_of * (length + 1) + places, tokens)
        inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        labels[np.arange(1, length + 1) >= totals[:, None]] = IGNORE_INDEX
        inner = places > 0
        labels[row_of[inner], places[inner] - 1] = IGNORE_INDEX
        return SampleBatch(
            inputs,
            labels,
            np.minimum(totals, length),
            np.zeros((count, length), dtype=np.int64),
            np.full(count, IGNORE_INDEX, dtype=np.int64),
            self._documents(row_of[inner], places[inner], totals) if self._document_attention else None,
        )

    def samples_before(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As of :class:`ShardSamples`; a row is made of a whole shard, and so begins where that does."""
        shard_starts = np.append(self._shards.shard_starts, self._shards.num_tokens)
        next_starts = shard_starts[np.searchsorted(shard_starts, positions)]
        return np.searchsorted(self._rows.begins[self._rows.starts[:-1]], next_starts).astype(np.int64)

    def shards_of(self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> list[tuple[int, ...]]:
        """Numbers of the shards in which each row lies: always a single one."""
        check_indices(indices, len(self))
        begins = self._rows.begins[self._rows.starts[indices]]
        return self._shards.shards_of(begins, begins + 1)

    def _pieces(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Stretches]:
        """The pieces of some rows, row by row: number of the row among those given, and where the piece lies."""
        first = self._rows.starts[indices]
        counts = self._rows.starts[indices + 1] - first
        row_of = np.repeat(np.arange(indices.size), counts)
        pieces = first[row_of] + np.arange(row_of.size) - (np.cumsum(counts) - counts)[row_of]
        begins = self._rows.begins[pieces]
        return row_of, Stretches(begins, begins + self._rows.lengths[pieces])

    def _documents(
        self, row_of: NDArray[np.int64], places: NDArray[np.int64], totals: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Number of the piece within its row to which each position belongs, [n, S]; padding counts as one more."""
        starts = np.zeros((totals.size, self._sequence_length + 2), dtype=np.int64)
        starts[row_of, places] = 1
        starts[np.arange(totals.size), totals] = 1
        return np.cumsum(starts[:, : self._sequence_length], axis=1)
