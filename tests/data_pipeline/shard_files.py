"""Small real shards for the tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import (
    ShardSet,
    TokenizedDocument,
    TokenizerIdentity,
    token_dtype,
    write_manifest,
    write_shard,
)

SPECIAL_IDS = MappingProxyType({"unknown": 0, "pad": 1, "end_of_document": 2, "classify": 3, "separator": 4, "mask": 5})
"""As of a tokenizer of kind sentencepiece-bpe."""

TEXT = len(SPECIAL_IDS)
"""In counting prose, the token at position p of the set has the id p + TEXT."""


def document(tokens: Sequence[int]) -> TokenizedDocument:
    ids = np.array(tokens, dtype=np.int64)
    sentences = np.arange(0, ids.size, 3, dtype=np.int32)
    return TokenizedDocument(ids, sentences, ids % 2 == 0)


def documents_of(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[TokenizedDocument]:
    rng = np.random.default_rng(seed)
    return [document([*rng.integers(1, vocab_size, length - 1), 0]) for length in lengths]


def write_shards(
    directory: Path,
    shards: Sequence[Sequence[TokenizedDocument]],
    vocab_size: int = 512,
    special_ids: Mapping[str, int] = MappingProxyType({"end_of_document": 0}),
) -> ShardSet:
    dtype = token_dtype(vocab_size)
    entries = [
        write_shard(directory / f"shard-{number:05d}.tar", f"{number:05d}", documents, dtype)
        for number, documents in enumerate(shards)
    ]
    identity = TokenizerIdentity("ab" * 32, vocab_size, dict(special_ids))
    write_manifest(directory, entries, identity, {"made_by": "test"})
    return ShardSet.open(directory)


def counting_shards(directory: Path, *token_counts: int) -> ShardSet:
    """Token k of the set has the id k, so that every sample shows where it was cut; one document a shard."""
    ends = np.cumsum(token_counts)
    vocab_size = max(int(ends[-1]), 2)
    shards = [[document(range(end - count, end))] for end, count in zip(ends.tolist(), token_counts, strict=True)]
    return write_shards(directory, shards, vocab_size)


def counting_prose(directory: Path, shards: Sequence[Sequence[Sequence[int]]]) -> ShardSet:
    """Text whose ids say where they stand: shards of documents of sentences, given by their lengths in tokens.

    The last token of a document is the end-of-document id. About seven tokens in ten start a word.
    """
    position = 0
    written = []
    for shard in shards:
        documents = []
        for sentences in shard:
            bounds = np.cumsum([0, *sentences])
            ids = np.arange(position, position + bounds[-1] + 1) + TEXT
            words = starts_word(ids - TEXT)
            ids[-1] = SPECIAL_IDS["end_of_document"]
            documents.append(TokenizedDocument(ids, bounds[:-1].astype(np.int32), words))
            position += ids.size
        written.append(documents)
    return write_shards(directory, written, position + TEXT, SPECIAL_IDS)


def starts_word(positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where words start in counting prose."""
    return positions * 7919 % 101 < 71


def random_prose(documents: int, *, seed: int, sentences: int = 12, tokens: int = 15) -> list[list[int]]:
    """Documents of about so many sentences of about so many tokens, for counting prose."""
    rng = np.random.default_rng(seed)
    return [rng.geometric(1 / tokens, rng.geometric(1 / sentences)).tolist() for _ in range(documents)]
