"""Small real shards for the tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.shards import (
    ShardSet,
    TokenizedDocument,
    TokenizerIdentity,
    token_dtype,
    write_manifest,
    write_shard,
)


def document(tokens: Sequence[int]) -> TokenizedDocument:
    ids = np.array(tokens, dtype=np.int64)
    sentences = np.arange(0, ids.size, 3, dtype=np.int32)
    return TokenizedDocument(ids, sentences, ids % 2 == 0)


def documents_of(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[TokenizedDocument]:
    rng = np.random.default_rng(seed)
    return [document([*rng.integers(1, vocab_size, length - 1), 0]) for length in lengths]


def write_shards(directory: Path, shards: Sequence[Sequence[TokenizedDocument]], vocab_size: int = 512) -> ShardSet:
    dtype = token_dtype(vocab_size)
    entries = [
        write_shard(directory / f"shard-{number:05d}.tar", f"{number:05d}", documents, dtype)
        for number, documents in enumerate(shards)
    ]
    identity = TokenizerIdentity("ab" * 32, vocab_size, {"end_of_document": 0})
    write_manifest(directory, entries, identity, {"made_by": "test"})
    return ShardSet.open(directory)


def counting_shards(directory: Path, *token_counts: int) -> ShardSet:
    """Token k of the set has the id k, so that every sample shows where it was cut; one document a shard."""
    ends = np.cumsum(token_counts)
    vocab_size = max(int(ends[-1]), 2)
    shards = [[document(range(end - count, end))] for end, count in zip(ends.tolist(), token_counts, strict=True)]
    return write_shards(directory, shards, vocab_size)
