"""Files of token ids in another format -> our shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.atomic import atomic_folder
from data_pipeline.errors import DataError
from data_pipeline.interop.block import TokenBlock
from data_pipeline.interop.formats import dtype_of, files_of, format_of
from data_pipeline.interop.options import Reading
from data_pipeline.interop.shard_writing import PartWriter
from data_pipeline.interop.split import TokenSplit
from data_pipeline.shards import write_manifest
from data_pipeline.tokenizers import Tokenizer

_RULES = 1
"""Version of the rules that turn foreign ids into shards; a change makes old shards other shards."""


@dataclass
class ImportCounts:
    """What was read, and what was changed on the way.

    Attributes:
        documents: imported.
        tokens: imported, the added ends included.
        ends_added: documents that did not end with the end-of-document id.
        empty: documents without a token, left out.
        unsplit: documents that are one sentence because their text does not give the same ids again.
    """

    documents: int = 0
    tokens: int = 0
    ends_added: int = 0
    empty: int = 0
    unsplit: int = 0


@dataclass(frozen=True)
class ImportSummary:
    """The folder, its documents and tokens by part, what was changed, and the seconds it took."""

    path: Path
    documents: dict[str, int]
    tokens: dict[str, int]
    counts: ImportCounts
    seconds: float


@dataclass(frozen=True)
class ImportOptions:
    """How to import.

    Attributes:
        validation_fraction: share of the documents to hold out, by their ids; 0: none.
        validation: files to hold out instead, of the same format.
        sentences: look for sentences in the text; otherwise a document has those of the file, or is one.
        shard_tokens: after which a shard is closed.
        column: that holds the ids, in formats with columns; None: the usual one.
        dtype: of the ids, in files that do not say; None: what is usual in the format.
    """

    validation_fraction: float = 0.02
    validation: Sequence[Path] = ()
    sentences: bool = False
    shard_tokens: int = 1 << 24
    column: str | None = None
    dtype: str | None = None


def import_tokens(
    paths: Sequence[Path],
    format: str,
    tokenizer: Tokenizer,
    out: Path,
    options: ImportOptions = ImportOptions(),
    *,
    overwrite: bool = False,
    on_progress: Callable[[ImportCounts], None] | None = None,
) -> ImportSummary:
    """Write ``out/train`` and ``out/validation`` of documents that are tokens already; ``out`` appears when complete.

    Every id is checked against the vocabulary. A document ends with the end-of-document id, which is added where it
    is missing; one without a token is left out. Word starts follow from the ids. Memory is bounded: two shards.

    Args:
        paths: files of the format, or folders of them.
        format: one of ``FORMATS``.
        tokenizer: the one that made the ids.
        out: the folder to make.
        options: see there.
        overwrite: replace a folder of that name.
        on_progress: called with what was read so far.

    Raises: DataError if a file is missing or damaged, an id is not in the vocabulary, the documents cannot be split,
        or ``out`` exists or cannot be written.
    """
    started = time.monotonic()
    source = _Source.of(paths, format, tokenizer, options)
    counts = ImportCounts()
    split = source.split(options)
    parts = ("train", "validation") if split.threshold or options.validation else ("train",)
    with atomic_folder(out, overwrite=overwrite) as folder:
        writers = {
            name: PartWriter(folder / name, tokenizer, options.shard_tokens, options.sentences) for name in parts
        }
        for origin, block in source.blocks(counts):
            held_out = split.is_validation(block) | (origin >= source.held_out_from)
            for name, writer in writers.items():
                writer.add(block.select(held_out == (name == "validation")), origin)
            if on_progress:
                on_progress(counts)
        entries = {name: writer.finish() for name, writer in writers.items()}
        for name, shards in entries.items():
            if not shards:
                raise DataError(f"no document for {name} in {', '.join(map(str, paths))}; check --format and the files")
            write_manifest(folder / name, shards, tokenizer.identity, source.description(options))
        counts.unsplit = sum(writer.unsplit for writer in writers.values())
    documents = {name: sum(shard.documents for shard in shards) for name, shards in entries.items()}
    tokens = {name: sum(shard.tokens for shard in shards) for name, shards in entries.items()}
    return ImportSummary(out, documents, tokens, counts, time.monotonic() - started)


@dataclass(frozen=True)
class _Source:
    """All files to read, those of number `held_out_from` and on for validation, as documents that obey our rules."""

    format: str
    files: list[Path]
    held_out_from: int
    reading: Reading
    vocab_size: int

    @classmethod
    def of(cls, paths: Sequence[Path], format: str, tokenizer: Tokenizer, options: ImportOptions) -> _Source:
        known = format_of(format)
        end = tokenizer.special_ids.get("end_of_document")
        if end is None:
            raise DataError("this tokenizer has no end-of-document id, which every document ends with; use another one")
        if options.column is not None and not known.has_columns:
            raise DataError(f"files of format {format} have no columns; leave --column out")
        if options.dtype is not None and known.names_dtype:
            raise DataError(f"files of format {format} say how ids are stored; leave --dtype out")
        if options.shard_tokens < 1:
            raise DataError(f"shard_tokens={options.shard_tokens} must be at least 1")
        dtype = None
        if options.dtype is not None or known.has_ends:
            dtype = dtype_of(format, options.dtype, tokenizer.vocab_size)
        files = files_of(format, paths)
        reading = Reading(end, dtype, options.column)
        return cls(format, files + files_of(format, options.validation), len(files), reading, tokenizer.vocab_size)

    def split(self, options: ImportOptions) -> TokenSplit:
        """Which documents of the files for training are held out; the head of the files is read for it."""
        if options.validation:
            return TokenSplit(0)
        return TokenSplit.of_fraction(options.validation_fraction, (block for _, block in self.blocks(ImportCounts())))

    def blocks(self, counts: ImportCounts) -> Iterator[tuple[int, TokenBlock]]:
        """Documents with the number of their file, none empty, all of known ids, and each with its end; counted."""
        for origin, path in enumerate(self.files):
            before = 0
            for found in format_of(self.format).read(path, self.reading):
                self._check(found, path, before)
                before += found.documents
                whole = found.without_empty()
                counts.empty += found.documents - whole.documents
                if not whole.documents:
                    continue
                block = whole.ended_by(self.reading.end_of_document)
                counts.ends_added += block.tokens.size - whole.tokens.size
                counts.documents += block.documents
                counts.tokens += block.tokens.size
                yield origin, block

    def description(self, options: ImportOptions) -> dict[str, Any]:
        """What the manifest keeps of the import."""
        return {
            "rules": _RULES,
            "imported": self.format,
            "sources": [{"name": path.name, "bytes": _size(path)} for path in self.files],
            "validation_fraction": None if options.validation else options.validation_fraction,
            "sentences": options.sentences,
            "shard_tokens": options.shard_tokens,
        }

    def _check(self, block: TokenBlock, path: Path, before: int) -> None:
        if not block.tokens.size or (block.tokens.max() < self.vocab_size and block.tokens.min() >= 0):
            return
        place = int(np.flatnonzero((block.tokens < 0) | (block.tokens >= self.vocab_size))[0])
        document = before + int(np.searchsorted(block.offsets, place, side="right")) - 1
        raise DataError(
            f"{path}, document {document}: id {block.tokens[place]} in a vocabulary of {self.vocab_size} ids; "
            "give the tokenizer that made these ids"
        )


def _size(path: Path) -> int:
    """Bytes of a file, and of the one beside it that holds the ids of a Megatron index."""
    size = path.stat().st_size
    with suppress(FileNotFoundError):
        if path.suffix == ".idx":
            size += path.with_suffix(".bin").stat().st_size
    return size
