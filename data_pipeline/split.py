"""Which documents are held out for validation: decided by their content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from data_pipeline.errors import DataError
from data_pipeline.sources import Document

_RANGE = 1 << 64


class ValidationSplit:
    """Documents whose salted content hash lies below a threshold are for validation.

    Order, file names and shard sizes play no part, and equal texts lie on the same side.

    Attributes:
        threshold: of the 64-bit hash.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold

    @classmethod
    def of_fraction(cls, fraction: float, documents: Iterable[Document]) -> ValidationSplit:
        """The split that holds out about ``fraction`` of the documents, and at least one on each side.

        Reads on only until both sides have a document, so this is quick for all but the smallest corpora.

        Raises: DataError if the fraction is not between 0 and 1, there is no document, or all have the same text.
        """
        if not 0 < fraction < 1:
            raise DataError(f"validation_fraction={fraction} must lie between 0 and 1, for example 0.02")
        threshold = round(fraction * _RANGE)
        lowest, highest = _RANGE, -1
        for document in documents:
            place = _place(document.text)
            lowest, highest = min(lowest, place), max(highest, place)
            if lowest < threshold <= highest:
                return cls(threshold)
        if highest < 0:
            raise DataError("the input holds no text; every document is blank")
        if lowest == highest:
            raise DataError(
                "the input is one document (or copies of one), which cannot be split into training and validation; "
                "give at least 2 different documents"
            )
        return cls(lowest + 1 if lowest >= threshold else highest)

    def is_validation(self, text: str) -> bool:
        """Whether a document of this text is held out."""
        return _place(text) < self.threshold


def _place(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"ptm-validation")
    return int.from_bytes(digest.digest(), "little")
