"""Our shards -> files of another format, document by document the same ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from data_pipeline.atomic import atomic_folder
from data_pipeline.errors import DataError
from data_pipeline.interop.block import TokenBlock, cut
from data_pipeline.interop.formats import Format, dtype_of, format_of
from data_pipeline.interop.options import Sequences, Writing
from data_pipeline.shards import ShardSet
from data_pipeline.tokenizers import Tokenizer

_PARTS = ("train", "validation")


@dataclass(frozen=True)
class ExportSummary:
    """What was written: the folder, documents and tokens of each part by name, and the seconds it took."""

    path: Path
    documents: dict[str, int]
    tokens: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class ExportOptions:
    """What an export can be asked for; each format says what it knows.

    Attributes:
        part: "train" or "validation" alone; None: all there are.
        dtype: stored type of ids; None: what is usual in the format.
        sequences: for Megatron: one sequence for each document, or for each sentence, as BERT needs it.
        keep_ends: keep the end-of-document id at the end of each document.
        file_bytes: after which a file is closed; None: what is usual in the format.
    """

    part: str | None = None
    dtype: str | None = None
    sequences: Sequences = "document"
    keep_ends: bool = True
    file_bytes: int | None = None


def export_shards(
    folder: Path,
    format: str,
    out: Path,
    options: ExportOptions = ExportOptions(),
    *,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Write the documents of shards in another format; the folder ``out`` appears when it is complete.

    Each part is called by its name: ``train.bin``, ``train/index.json``, ``train-00000.parquet``.

    Args:
        folder: what ``ptm data build`` wrote, or one part of it.
        format: one of ``FORMATS``.
        out: the folder to make.
        options: see there.
        tokenizer: the one that made the shards; adds the text of each document, in formats that hold text.
        overwrite: replace a folder of that name.
        on_progress: called with the tokens written and those there are.

    Raises: DataError if the shards are missing or damaged, the format does not know an option, or ``out`` exists or
        cannot be written.
    """
    started = time.monotonic()
    parts = {part.name: ShardSet.open(part) for part in _folders(folder, options.part)}
    known = format_of(format)
    _check(format, known, options, tokenizer)
    total = sum(shards.num_tokens for shards in parts.values())
    written = 0

    def counted(blocks: Iterator[TokenBlock]) -> Iterator[TokenBlock]:
        nonlocal written
        for block in blocks:
            yield block
            written += block.tokens.size
            if on_progress:
                on_progress(written, total)

    with atomic_folder(out, overwrite=overwrite) as temporary:
        for name, shards in parts.items():
            writing = _writing(format, options, shards, tokenizer)
            blocks = counted(read_shards(shards))
            if not options.keep_ends:
                end = shards.tokenizer.special_ids["end_of_document"]
                blocks = (block.without_end(end) for block in blocks)
            known.write(temporary, name, blocks, writing)
    documents = {name: shards.num_documents for name, shards in parts.items()}
    tokens = {name: shards.num_tokens for name, shards in parts.items()}
    return ExportSummary(out, documents, tokens, time.monotonic() - started)


def read_shards(shards: ShardSet) -> Iterator[TokenBlock]:
    """The documents of a set in order, with their sentences; about a quarter of a million tokens at a time."""
    for structure in shards.structures():
        for first, last in cut(structure.documents):
            begin, end = (int(place) for place in structure.documents[[first, last]])
            low, high = structure.sentences.searchsorted([begin, end])
            yield TokenBlock(
                shards.tokens(structure.first_token + begin, structure.first_token + end),
                structure.documents[first : last + 1] - begin,
                structure.sentences[low : high + 1].astype("i8") - begin,
            )


def _folders(folder: Path, part: str | None) -> list[Path]:
    if part is not None and part not in _PARTS:
        raise DataError(f"--part {part} is not known; use {' or '.join(_PARTS)}")
    found = [folder / name for name in _PARTS if (folder / name).is_dir()]
    if not found and part is None:
        return [folder.absolute()]
    chosen = [path for path in found if part in (None, path.name)]
    if not chosen:
        raise DataError(f"{folder} has no part {part!r}; leave --part out to take what there is")
    return chosen


def _check(name: str, known: Format, options: ExportOptions, tokenizer: Tokenizer | None) -> None:
    if tokenizer is not None and not known.holds_text:
        raise DataError(f"--tokenizer adds text, which files of format {name} do not hold; leave it out")
    if options.sequences not in get_args(Sequences):
        raise DataError(f"--sequences {options.sequences} is not known; use {' or '.join(get_args(Sequences))}")
    if options.sequences == "sentence" and name != "megatron":
        raise DataError(f"--sequences sentence is for megatron; format {name} has no sentences")
    if not options.keep_ends and known.has_ends:
        raise DataError(f"files of format {name} part documents by their end ids alone; leave --without-ends out")
    if options.file_bytes is not None and not known.file_bytes:
        raise DataError(f"format {name} is one pair of files; leave --file-bytes out")


def _writing(name: str, options: ExportOptions, shards: ShardSet, tokenizer: Tokenizer | None) -> Writing:
    if tokenizer is not None and tokenizer.identity != shards.tokenizer:
        raise DataError(f"{shards.location} was made by another tokenizer than the one given; give its own")
    writing = Writing(
        dtype_of(name, options.dtype, shards.tokenizer.vocab_size),
        options.sequences,
        None if tokenizer is None else tokenizer.decode,
    )
    return replace(writing, file_bytes=options.file_bytes or format_of(name).file_bytes)
