"""What a model reads and predicts: (source, sample index) -> arrays, one file per objective."""

from __future__ import annotations

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
        inputs: token ids that the model reads, [S], int64.
        labels: token id that each position predicts, or ``IGNORE_INDEX``, [S], int64.
        document_starts: positions in [0, S) at which a document starts, ascending, int64.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: NDArray[np.int64]


class Samples(Protocol):
    """A fixed number of samples of one length, each found by its index alone."""

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """The sample at `index`: a pure function of the data and the index."""
        ...
