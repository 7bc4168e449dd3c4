"""What a model reads and predicts: (source, sample index) -> arrays, one file per objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100
"""Label of a position that predicts nothing; the default `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True)
class Sample:
    """One training or validation sample of S positions.

    Attributes:
        inputs: token ids that the model reads, masks already in place, [S], int64; the pad id from `length` on.
        labels: token id that each position predicts, or ``IGNORE_INDEX``, [S], int64.
        document_starts: positions in [0, S) at which a document starts, ascending, int64.
        length: positions that hold text; the rest is padding. It is S for every causal sample of whole windows.
        segments: 0 or 1 for the first or second text of a pair, [S], int64; all 0 without pairs and in padding.
        pair_label: 0 if the second text follows the first, 1 if it comes from another document or the two are
            swapped, ``IGNORE_INDEX`` if the sample is no pair.
        documents: as in :class:`SampleBatch`, [S], int64, or None.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    length: int
    segments: NDArray[np.int64]
    pair_label: int
    documents: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class SampleBatch:
    """The samples of n indices, row by row; what each column means stands in :class:`Sample`.

    Attributes:
        inputs: [n, S], int64.
        labels: [n, S], int64.
        lengths: [n], int64.
        segments: [n, S], int64.
        pair_labels: [n], int64.
        documents: number of the document within its row to which each position belongs, from 0, [n, S], int64. What a
            row begins with is document 0, even from its middle on; padding has a number that no text has. None unless
            the samples were made for attention within documents.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    segments: NDArray[np.int64]
    pair_labels: NDArray[np.int64]
    documents: NDArray[np.int64] | None

    def only_sample(self, document_starts: NDArray[np.int64]) -> Sample:
        """The sample of a batch of one.

        Args:
            document_starts: positions at which a document starts, ascending, int64.
        """
        return Sample(
            self.inputs[0],
            self.labels[0],
            document_starts,
            int(self.lengths[0]),
            self.segments[0],
            int(self.pair_labels[0]),
            None if self.documents is None else self.documents[0],
        )


class Samples(Protocol):
    """A fixed number of samples of one length, each found by its index alone."""

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids in the inputs that are no text, by role; see ``shards.TokenizerIdentity``."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample at `index`: a pure function of the data, the index and the epoch.

        Args:
            index: from 0.
            epoch: the pass over the data set in which it is read, from 0; 0 in validation. What is drawn at random,
                such as masks, may be drawn anew in every epoch.
        """
        ...

    def batch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        """The samples at `indices`, each as its epoch makes it, [n] both; what :meth:`sample` gives, one to a row."""
        ...


class ShardSamples(Samples, Protocol):
    """Samples of one set of shards, which say where they lie."""

    def samples_before(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples begin before each position of the shards, ascending positions of tokens, [n], int64."""
        ...

    def shards_of(self, indices: NDArray[np.int64], epochs: NDArray[np.int64] | None = None) -> list[tuple[int, ...]]:
        """Numbers of the shards that each sample is read from, for fetching them ahead; no text is read.

        Args:
            indices: of the samples, [n].
            epochs: in which each is read, [n]. Without them, text that an epoch draws from elsewhere is left out.
        """
        ...


def check_indices(indices: NDArray[np.int64], count: int) -> None:
    """Refuse indices of samples that are not there.

    Raises:
        IndexError: one lies outside [0, count).
    """
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        outside = indices[(indices < 0) | (indices >= count)]
        raise IndexError(f"sample {int(outside[0])} is outside [0, {count})")
