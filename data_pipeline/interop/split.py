"""Which imported documents are held out for validation: decided by their ids alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.interop.block import TokenBlock

_RANGE = 1 << 64
_SALT = 0x70746D2D76616C69


class TokenSplit:
    """Documents whose salted hash of ids lies below a threshold are for validation.

    Order, file names, stored types and formats play no part, and equal documents lie on the same side.

    Attributes:
        threshold: of the 64-bit hash.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold

    @classmethod
    def of_fraction(cls, fraction: float, blocks: Iterable[TokenBlock]) -> TokenSplit:
        """The split that holds out about `fraction` of the documents, and at least one on each side.

        Reads on only until both sides have a document. A fraction of 0 holds out none.

        Raises: DataError if the fraction is not in [0, 1), or there are no two different documents.
        """
        if not 0 <= fraction < 1:
            raise DataError(f"validation_fraction={fraction} must be at least 0 and below 1, for example 0.02")
        threshold = round(fraction * _RANGE)
        if threshold == 0:
            return cls(0)
        lowest, highest = _RANGE, -1
        for block in blocks:
            places = _places(block)
            lowest, highest = min(lowest, *places), max(highest, *places)
            if lowest < threshold <= highest:
                return cls(threshold)
        if lowest >= highest:
            raise DataError(
                "fewer than 2 different documents cannot be split into training and validation; "
                "give --validation-fraction 0 to hold out none"
            )
        return cls(lowest + 1 if lowest >= threshold else highest)

    def is_validation(self, block: TokenBlock) -> NDArray[np.bool_]:
        """Which documents are held out, [documents]."""
        if self.threshold == 0:
            return np.zeros(block.documents, dtype=np.bool_)
        return np.array([place < self.threshold for place in _places(block)], dtype=np.bool_)


def _places(block: TokenBlock) -> list[int]:
    data = np.ascontiguousarray(block.tokens, dtype="<u4").data.cast("B")
    bounds = (4 * block.offsets).tolist()
    hash_of = xxhash.xxh3_64_intdigest
    return [hash_of(data[begin:end], _SALT) for begin, end in pairwise(bounds)]
