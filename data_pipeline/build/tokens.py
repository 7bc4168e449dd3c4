"""Text -> tokens, with the places at which sentences and words begin."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import TokenizedDocument, token_dtype
from data_pipeline.tokenizers import Tokenizer
from data_pipeline.words import sentence_starts

_THREADS = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class EncodedText:
    """One text in ids; see ``TokenizedDocument``.

    Attributes:
        tokens: ids and the end-of-document id, [n], of the type in which they are stored.
        sentence_starts: position of each sentence's first token, int32.
        word_starts: where words start, [n], bool.
    """

    tokens: NDArray[np.unsignedinteger]
    sentence_starts: NDArray[np.int32]
    word_starts: NDArray[np.bool_]


def tokenize(text: str, tokenizer: Tokenizer) -> TokenizedDocument:
    """Encode one document: its ids and the end-of-document id, with the tokens at which sentences and words begin.

    Raises: ValueError if the tokenizer has no id for any of it.
    """
    (encoded,) = tokenize_batch([text], tokenizer)
    if encoded is None:
        raise ValueError(f"no token stands for anything in {text[:40]!r}")
    return TokenizedDocument(encoded.tokens, encoded.sentence_starts, encoded.word_starts)


def tokenize_batch(texts: Sequence[str], tokenizer: Tokenizer) -> list[EncodedText | None]:
    """Encode texts in one go; None for those that the tokenizer has no id for, such as control characters alone."""
    sentences = [sentence_starts(text) for text in texts]
    encoded = tokenizer.encode_sentences(texts, sentences)
    end = np.array([tokenizer.special_ids["end_of_document"]])
    tokens = np.concatenate([part for ids, _ in encoded for part in (ids, end)])
    # The end of a document ends a word, so words can be found in all documents at once.
    word_starts = tokenizer.word_starts(tokens)
    stored = tokens.astype(token_dtype(tokenizer.vocab_size))
    bounds = np.cumsum([0, *(ids.size + 1 for ids, _ in encoded)]).tolist()
    return [
        # Copies: a view of one small document would keep the whole batch.
        EncodedText(stored[begin:last].copy(), _firsts(before, ids.size), word_starts[begin:last].copy())
        if ids.size
        else None
        for (ids, before), (begin, last) in zip(encoded, pairwise(bounds), strict=True)
    ]


def _firsts(before: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """The first tokens of sentences that have one of their own: a token belongs to the sentence in which it begins."""
    own = before < np.append(before[1:], count)
    return before[own].astype(np.int32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the library ``tokenizers`` from starting a thread for every core: there is a process for each."""
    kept = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if kept is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = kept
