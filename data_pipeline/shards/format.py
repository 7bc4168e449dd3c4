"""What a token shard holds: the types and names that its writer and its readers share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 2

META = "meta.json"
TOKENS = "tokens.bin"
DOCUMENTS = "docs.bin"
SENTENCES = "sents.bin"
WORD_STARTS = "wstart.bin"
ORIGINS = "origin.bin"
INFO = "info.jsonl"
HASHES = "hashes.bin"
MEMBERS = (META, TOKENS, DOCUMENTS, SENTENCES, WORD_STARTS, ORIGINS, INFO, HASHES)
"""Members of a shard in the order in which they lie in the file; KEY. stands before each name. Only the information
about documents may be absent."""

STRUCTURE = (DOCUMENTS, SENTENCES, WORD_STARTS)
"""Members that say where things start, and not what the text is."""

DOCUMENT_DTYPE = np.dtype("<i8")
SENTENCE_DTYPE = np.dtype("<i4")
ORIGIN_DTYPE = np.dtype("<u4")
MAX_SHARD_TOKENS = np.iinfo(SENTENCE_DTYPE).max
MAX_ORIGIN = np.iinfo(ORIGIN_DTYPE).max


@dataclass(frozen=True)
class TokenizedDocument:
    """One document as a tokenizer left it.

    Attributes:
        tokens: ids, [n] with n >= 1, any integer dtype; the last is the end-of-document id.
        sentence_starts: position in `tokens` of each sentence's first token, ascending from 0, int32.
        word_starts: True where a word starts, [n], bool.
        origin: number of the file that the text came from, in the manifest's list of sources.
        info: what else is known about the document, JSON values by name.

    Raises:
        ValueError: the arrays do not fit together.
    """

    tokens: NDArray[np.integer]
    sentence_starts: NDArray[np.int32]
    word_starts: NDArray[np.bool_]
    origin: int = 0
    info: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        count = self.tokens.size
        if self.tokens.ndim != 1 or count == 0:
            raise ValueError(f"a document needs a row of at least one token, got shape {self.tokens.shape}")
        if self.word_starts.shape != (count,):
            raise ValueError(f"{count} tokens but word starts of shape {self.word_starts.shape}")
        starts = self.sentence_starts.astype(np.int64)
        if starts.ndim != 1 or starts.size == 0 or starts[0] != 0 or starts[-1] >= count:
            raise ValueError(f"sentences of a document of {count} tokens start at {starts}; the first is 0")
        if (np.diff(starts) <= 0).any():
            raise ValueError("sentence starts must ascend")
        if not 0 <= self.origin <= MAX_ORIGIN:
            raise ValueError(f"a document of source file number {self.origin}")


@dataclass(frozen=True)
class TokenizedDocuments:
    """Many documents at once, one after the other, for writers that have them as one long row.

    Attributes:
        tokens: ids of all documents, [n] with n >= 1, any integer dtype; each ends with the end-of-document id.
        document_starts: position in `tokens` of each document's first token, ascending from 0, int64.
        sentence_starts: position of each sentence's first token, ascending, int64; every document starts one.
        word_starts: True where a word starts, [n], bool.
        origin: number of the file that all of them came from, in the manifest's list of sources.

    Raises:
        ValueError: the arrays do not fit together.
    """

    tokens: NDArray[np.integer]
    document_starts: NDArray[np.int64]
    sentence_starts: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    origin: int = 0

    def __post_init__(self) -> None:
        count = self.tokens.size
        if self.tokens.ndim != 1 or self.word_starts.shape != (count,):
            raise ValueError(f"tokens of shape {self.tokens.shape}, word starts of shape {self.word_starts.shape}")
        for starts in (self.document_starts, self.sentence_starts):
            if starts.ndim != 1 or starts.size == 0 or starts[0] != 0 or starts[-1] >= count:
                raise ValueError(f"documents and sentences of {count} tokens start at 0 and later, got {starts}")
            if (starts[1:] <= starts[:-1]).any():
                raise ValueError("starts of documents and of sentences must ascend")
        places = np.searchsorted(self.sentence_starts, self.document_starts)
        if places[-1] == self.sentence_starts.size or (self.sentence_starts[places] != self.document_starts).any():
            raise ValueError("every document must start a sentence")
        if not 0 <= self.origin <= MAX_ORIGIN:
            raise ValueError(f"documents of source file number {self.origin}")


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made a set of shards; two equal ones give the same ids for the same text.

    Attributes:
        sha256: hash of the tokenizer's model.
        vocab_size: number of ids.
        special_ids: ids that no ordinary text produces, by role, such as "end_of_document".
    """

    sha256: str
    vocab_size: int
    special_ids: dict[str, int]


def meta(dtype: np.dtype[np.unsignedinteger], tokens: int, documents: int, sentences: int) -> bytes:
    """What a shard says about itself in JSON, for programs that read it without the manifest."""
    said = {
        "format": FORMAT_VERSION,
        "dtype": dtype.str,
        "tokens": tokens,
        "documents": documents,
        "sentences": sentences,
    }
    return json.dumps(said, sort_keys=True).encode()


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest stored type that holds every id below `vocab_size`: little-endian u16 or u32.

    Raises:
        ValueError: the vocabulary is empty or has more than 2^32 ids.
    """
    if not 1 <= vocab_size <= 1 << 32:
        raise ValueError(f"a vocabulary of {vocab_size} ids")
    return np.dtype("<u2") if vocab_size < 1 << 16 else np.dtype("<u4")
