"""Several data sets one after the other, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples import Sample, SampleBatch, Samples, check_indices


class JoinedSamples:
    """The samples of several data sets in a row: those of the first, of the second, and so on.

    Args:
        parts: at least one; samples of one length.

    Raises:
        ValueError: none, or samples of different lengths.
    """

    def __init__(self, parts: Sequence[Samples]) -> None:
        if len({part.sequence_length for part in parts}) != 1:
            raise ValueError("data sets to join have samples of one length")
        self._parts: tuple[Samples, ...] = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self._parts[0].sequence_length

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by role."""
        return self._parts[0].special_ids

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, index: int, epoch: int) -> Sample:
        """Sample `index`, from 0, counted over all parts.

        Raises:
            IndexError: there is no such sample.
        """
        numbers, first = self._part(np.array([index]))
        return self._parts[int(numbers[0])].sample(index - int(first[0]), epoch)

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The samples at `indices`, [n], row by row.

        Raises:
            IndexError: there is no such sample.
        """
        numbers, first = self._part(indices)
        if not indices.size:
            return self._parts[0].batch(indices, epochs)
        rows = [np.flatnonzero(numbers == number) for number in np.unique(numbers).tolist()]
        batches = [self._parts[numbers[own[0]]].batch(indices[own] - first[own], epochs[own]) for own in rows]
        return merge_batches(batches, rows)

    def _part(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of the part of each index, and the index of that part's first sample."""
        check_indices(indices, len(self))
        numbers = np.searchsorted(self._ends, indices, side="right")
        return numbers, np.append(0, self._ends)[numbers]


def merge_batches(batches: Sequence[SampleBatch], rows: Sequence[NDArray[np.int64]]) -> SampleBatch:
    """One batch of several.

    Args:
        batches: at least one, of samples of one length.
        rows: for each of them, at which rows of the whole its own belong; together each row once.
    """
    if len(batches) == 1:
        return batches[0]
    order = np.argsort(np.concatenate(rows))

    def column(name: str) -> NDArray[np.int64]:
        merged: NDArray[np.int64] = np.concatenate([getattr(batch, name) for batch in batches])[order]
        return merged

    return SampleBatch(
        column("inputs"),
        column("labels"),
        column("lengths"),
        column("segments"),
        column("pair_labels"),
        None if batches[0].documents is None else column("documents"),
    )
