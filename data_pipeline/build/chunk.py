"""One chunk of text -> its shards of training and validation data."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.build.duplicates import Duplicates
from data_pipeline.build.plan import Plan
from data_pipeline.build.reading import ChunkReader, StepNotes
from data_pipeline.build.tokens import one_thread, tokenize_batch
from data_pipeline.processes import Note
from data_pipeline.shards import ShardEntry, TokenizedDocument, token_dtype, write_shard
from data_pipeline.sources import Document
from data_pipeline.split import ValidationSplit
from data_pipeline.tokenizers import Tokenizer

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")
_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 512


@dataclass(frozen=True)
class ChunkRecord:
    """What came of a chunk.

    Attributes:
        documents: read, before anything was left out.
        content: hash of what was read.
        counts: documents left out or changed, by reason.
        shards: of each side, in order.
    """

    documents: int
    content: str
    counts: dict[str, int]
    shards: dict[Side, list[ShardEntry]]


@dataclass(frozen=True)
class BuildChunk:
    """Turns chunks into shards below ``folder``.

    Attributes:
        plan: says what the chunks are.
        tokenizer: ends every document with its end-of-document id.
        duplicates: which documents to leave out for having been there before.
        folder: holds a folder for each side.
    """

    plan: Plan
    tokenizer: Tokenizer
    duplicates: Duplicates
    folder: Path

    def __call__(self, chunk: int, note: Note) -> ChunkRecord:
        """Read a chunk and write its shards.

        Raises: DataError if the text cannot be read or the shards not be written.
        """
        reader, notes = ChunkReader(self.plan, chunk), StepNotes(chunk, note)
        split = ValidationSplit(self.plan.threshold)
        limit = self.plan.request.options.shard_bytes
        open_shards = {side: _OpenShard(self.folder / side, chunk, self.tokenizer.vocab_size, limit) for side in SIDES}
        left_out: Counter[str] = Counter()
        for batch in _batches(self._unique(reader, chunk, left_out)):
            texts = [document.text for _, document in batch]
            with one_thread():
                encoded = tokenize_batch(texts, self.tokenizer)
            for (source, document), tokens in zip(batch, encoded, strict=True):
                if tokens is None:
                    left_out["no_tokens"] += 1
                    continue
                side: Side = "validation" if split.is_validation(document.text) else "train"
                size = len(document.text.encode())
                places = tokens.tokens, tokens.sentence_starts, tokens.word_starts
                open_shards[side].add(TokenizedDocument(*places, source, document.info or None), size)
                notes.add(documents=1, text_bytes=size, tokens=tokens.tokens.size)
        shards = {side: shard.closed() for side, shard in open_shards.items()}
        notes.finish()
        return ChunkRecord(reader.documents, reader.content, dict(Counter(reader.counts) + left_out), shards)

    def _unique(self, reader: ChunkReader, chunk: int, left_out: Counter[str]) -> Iterator[tuple[int, Document]]:
        dropped = self.duplicates.of_chunk(chunk)
        for ordinal, (source, document) in enumerate(reader):
            kind = dropped.get(ordinal)
            if kind is None:
                yield source, document
            else:
                left_out[f"{kind}_duplicate"] += 1


class _OpenShard:
    """Documents of one side on their way to the next shard."""

    def __init__(self, folder: Path, chunk: int, vocab_size: int, limit: int) -> None:
        self._folder, self._chunk, self._limit = folder, chunk, limit
        self._dtype = token_dtype(vocab_size)
        self._documents: deque[TokenizedDocument] = deque()
        self._text_bytes = 0
        self._entries: list[ShardEntry] = []

    def add(self, document: TokenizedDocument, text_bytes: int) -> None:
        """Take one document; a shard is written when there is enough text."""
        self._documents.append(document)
        self._text_bytes += text_bytes
        if self._text_bytes >= self._limit:
            self._write()

    def closed(self) -> list[ShardEntry]:
        """Write what is left; all shards."""
        if self._documents:
            self._write()
        return self._entries

    def _write(self) -> None:
        key = f"{self._chunk:06d}-{len(self._entries):03d}"
        path = self._folder / f"{key}.tar"
        self._entries.append(write_shard(path, key, self._handed_over(), self._dtype))
        self._text_bytes = 0

    def _handed_over(self) -> Iterator[TokenizedDocument]:
        while self._documents:
            yield self._documents.popleft()


def _batches(documents: Iterator[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    """Documents in groups that are encoded together: a mebibyte of text, as far as single documents allow."""
    batch: list[tuple[int, Document]] = []
    size = 0
    for source, document in documents:
        batch.append((source, document))
        size += len(document.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
