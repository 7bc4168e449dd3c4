"""The text a tokenizer learns from: whole documents, or of a large corpus a sample drawn by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from data_pipeline.errors import DataError
from data_pipeline.sources import find_sources, read_documents


class TrainingText:
    """The texts to learn from, the same ones in whatever order the documents lie, as often as they are asked for.

    A library that consumes them turns a reading error into one of its own; it is kept here.

    Attributes:
        error: what went wrong while reading, if anything.
        empty: nothing has been read so far.
    """

    def __init__(self, patterns: Sequence[str], limit_bytes: int) -> None:
        self.error: DataError | None = None
        self.empty = True
        self.patterns = patterns
        self._keep = _kept_fraction(patterns, limit_bytes)

    def __iter__(self) -> Iterator[str]:
        try:
            for document in read_documents(self.patterns):
                if self._keep >= 1 or _content_fraction(document.text) < self._keep:
                    self.empty = False
                    yield document.text
        except DataError as error:
            self.error = error
            raise

    def nothing(self) -> DataError:
        """The error of a corpus without text."""
        return DataError(f"no text in {', '.join(self.patterns)}; a tokenizer needs some")


def too_large(vocab_size: int, largest: int | str) -> DataError:
    """The error of a vocabulary that the text cannot fill, naming the size that it can."""
    return DataError(f"vocab_size={vocab_size} is too large for this text; use at most {largest} or add text")


def too_small(vocab_size: int, smallest: int | str) -> DataError:
    """The error of a vocabulary that cannot hold the characters of the text, naming the size that can."""
    return DataError(f"vocab_size={vocab_size} is too small for this text's characters; use at least {smallest}")


def _kept_fraction(patterns: Sequence[str], limit_bytes: int) -> float:
    files = find_sources(patterns)
    # Packed files and parquet hold more text than bytes; a server that cannot send ranges may not tell the size.
    plain = all(file.encoding.compression == "none" and file.encoding.format != "parquet" for file in files)
    if plain and all(file.ranges for file in files) and sum(file.bytes for file in files) <= limit_bytes:
        return 1.0
    total = sum(len(document.text.encode()) for document in read_documents(patterns))
    return limit_bytes / max(total, 1)


def _content_fraction(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"ptm-tok-sample").digest()
    return int.from_bytes(digest, "little") / 2**64
