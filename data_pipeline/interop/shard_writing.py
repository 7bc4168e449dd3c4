"""Blocks of documents -> the shards of one part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.build.tokens import tokenize_batch
from data_pipeline.interop.block import TokenBlock
from data_pipeline.shards import ShardEntry, TokenizedDocuments, token_dtype, write_shard
from data_pipeline.tokenizers import Tokenizer

_ONE_SENTENCE = np.zeros(1, dtype=np.int64)


class PartWriter:
    """Shards of documents in the order in which they come; a shard ends with the document that fills it.

    The bytes depend on the documents alone, not on how they are cut into blocks.

    Attributes:
        unsplit: documents whose text does not give the same ids again, which are one sentence each.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, sentences: bool) -> None:
        """Write into a new folder; `sentences`: look for them in the text, rather than in the blocks."""
        folder.mkdir()
        self.unsplit = 0
        self._folder = folder
        self._tokenizer = tokenizer
        self._limit = shard_tokens
        self._sentences = sentences
        self._entries: list[ShardEntry] = []
        self._waiting: list[tuple[TokenBlock, int]] = []
        self._room = shard_tokens

    def add(self, block: TokenBlock, origin: int) -> None:
        """Add documents that came from the file number `origin`."""
        first = 0
        while first < block.documents:
            last = min(int(np.searchsorted(block.offsets, block.offsets[first] + self._room)), block.documents)
            self._waiting.append((block.slice(first, last), origin))
            self._room -= int(block.offsets[last] - block.offsets[first])
            if self._room <= 0:
                self._flush()
            first = last

    def finish(self) -> list[ShardEntry]:
        """Write the last shard; what the manifest says about all of them."""
        if self._waiting:
            self._flush()
        return self._entries

    def _flush(self) -> None:
        key = f"{len(self._entries):06d}"
        dtype = token_dtype(self._tokenizer.vocab_size)
        self._entries.append(write_shard(self._folder / f"{key}.tar", key, self._documents(), dtype))
        self._waiting, self._room = [], self._limit

    def _documents(self) -> Iterator[TokenizedDocuments]:
        for block, origin in self._waiting:
            word_starts = self._tokenizer.word_starts(block.tokens.astype(np.int64))
            yield TokenizedDocuments(
                block.tokens, block.offsets[:-1], self._sentence_starts(block), word_starts, origin
            )

    def _sentence_starts(self, block: TokenBlock) -> NDArray[np.int64]:
        if self._sentences:
            starts = block.offsets[:-1].tolist()
            return np.concatenate(
                [begin + self._found_in_text(row) for begin, row in zip(starts, block.rows(), strict=True)]
            )
        return block.offsets[:-1] if block.sentences is None else block.sentences[:-1]

    def _found_in_text(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        if tokens.size == 1:
            return _ONE_SENTENCE
        (again,) = tokenize_batch([self._tokenizer.decode(tokens.tolist())], self._tokenizer)
        if again is not None and np.array_equal(again.tokens, tokens):
            return again.sentence_starts.astype(np.int64)
        self.unsplit += 1
        return _ONE_SENTENCE
