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
        length: positions that hold text; the rest is padding. Causal samples have none: it is S.
        segments: 0 or 1 for the first or second text of a pair, [S], int64; all 0 without pairs and in padding.
        pair_label: 0 if the second text follows the first, 1 if it comes from another document or the two are
            swapped, ``IGNORE_INDEX`` if the sample is no pair.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    length: int
    segments: NDArray[np.int64]
    pair_label: int


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
