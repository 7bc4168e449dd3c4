"""Text -> tokens, with the places at which sentences and words begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import TokenizedDocument
from data_pipeline.tokenizers import Tokenizer
from data_pipeline.words import sentence_starts


def tokenize(text: str, tokenizer: Tokenizer) -> TokenizedDocument:
    """Encode one document: its ids and the end-of-document id, with the tokens at which sentences and words begin."""
    return _document(text, *tokenizer.encode_with_offsets(text), tokenizer)


def tokenize_batch(texts: Sequence[str], tokenizer: Tokenizer) -> list[TokenizedDocument | None]:
    """Encode documents in one go; None for those that the tokenizer has no id for, such as control characters."""
    encoded = [tokenizer.encode_with_offsets(text) for text in texts]
    return [
        _document(text, ids, starts, tokenizer) if ids.size else None
        for text, (ids, starts) in zip(texts, encoded, strict=True)
    ]


def _document(text: str, ids: NDArray[np.int64], starts: NDArray[np.int64], tokenizer: Tokenizer) -> TokenizedDocument:
    sentences = sentence_starts(text)
    bounds = zip([0, *sentences], sentences, strict=False)
    sentence_bytes = np.cumsum([len(text[begin:end].encode()) for begin, end in bounds])
    tokens = np.append(ids, tokenizer.special_ids["end_of_document"])
    # A token that spans a boundary belongs to the sentence in which it begins.
    sentence_tokens = np.unique(np.searchsorted(starts, sentence_bytes))
    return TokenizedDocument(
        tokens=tokens,
        sentence_starts=sentence_tokens[sentence_tokens < len(ids)].astype(np.int32),
        word_starts=tokenizer.word_starts(tokens),
    )
