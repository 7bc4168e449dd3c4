"""Documents -> token shards for training and validation, on several processes, the same bytes on any number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.atomic import atomic_folder
from data_pipeline.errors import DataError
from data_pipeline.processes import map_in_order
from data_pipeline.shards import (
    Manifest,
    ShardEntry,
    ShardSet,
    TokenizedDocument,
    TokenizerIdentity,
    token_dtype,
    write_manifest,
    write_shard,
)
from data_pipeline.sources import describe_files, read_documents
from data_pipeline.split import ValidationSplit
from data_pipeline.tokenizers import Tokenizer, load_tokenizer
from data_pipeline.words import sentence_starts

_RULES = 1
"""Version of the rules that turn text into shards; a change makes old shards other shards."""

Side = Literal["train", "validation"]
_SIDES: tuple[Side, ...] = ("train", "validation")


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: shards, documents, tokens and bytes of text (UTF-8) finished, seconds since the start."""

    shards: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SideSummary:
    """One side of the split: where it lies, its shards, documents and tokens, and the fingerprint of its data."""

    path: Path
    shards: int
    documents: int
    tokens: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.documents:,} documents, {self.tokens:,} tokens, {self.shards} shards"


@dataclass(frozen=True)
class BuildSummary:
    """What lies in the output folder.

    Attributes:
        path: the output folder.
        train: what is trained on.
        validation: what is held out.
        reused: the folder was there, made of the same input and options; nothing was built.
        seconds: the whole call took.
    """

    path: Path
    train: SideSummary
    validation: SideSummary
    reused: bool
    seconds: float

    def __str__(self) -> str:
        verb = "is there already, made of the same text and options" if self.reused else "built"
        sides = (f"{name}: {side}" for name, side in (("train", self.train), ("validation", self.validation)))
        return "\n  ".join([f"{self.path} {verb} ({self.seconds:.1f} s)", *sides])


@dataclass(frozen=True)
class _Unit:
    """The consecutive documents of one side that become one shard."""

    side: Side
    number: int
    texts: list[str]
    text_bytes: int


@dataclass(frozen=True)
class _Shard:
    """A finished unit."""

    side: Side
    entry: ShardEntry
    text_bytes: int


def build_shards(
    patterns: Sequence[str],
    *,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    out: Path,
    validation_fraction: float = 0.02,
    shard_bytes: int = 64 << 20,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildSummary:
    """Tokenise documents into ``out/train`` and ``out/validation``; the folder appears when it is complete.

    The bytes written depend on the text, the tokenizer and the options, not on ``workers`` or the machine. Memory
    is bounded: the text of about ``workers + 3`` shards, and the tokens of one for each worker. More than one
    worker means processes started by ``spawn``: a program that calls this needs the usual
    ``if __name__ == "__main__"``.

    Args:
        patterns: source files, see ``sources.read_documents``.
        tokenizer: its end-of-document id ends every document.
        tokenizer_folder: from where each worker loads that same tokenizer.
        out: folder to make; when it was built of the same input and options, it is kept and nothing is done.
        validation_fraction: share of the documents to hold out, by content; at least one is.
        shard_bytes: text (UTF-8 bytes) after which a shard is closed.
        workers: processes that tokenise; 1 works in this process.
        overwrite: replace a folder built of something else.
        on_progress: called after each finished shard.

    Raises: DataError if the input cannot be read or split, an option is out of range, ``out`` holds something else or
        cannot be written, or a worker is killed.
    """
    started = time.monotonic()
    _check(tokenizer, tokenizer_folder, shard_bytes, workers)
    build = {
        "rules": _RULES,
        "sources": [asdict(source) for source in describe_files(patterns)],
        "validation_fraction": validation_fraction,
        "shard_bytes": shard_bytes,
    }
    if out.exists() and not overwrite:
        return _reuse(out, build, tokenizer.identity, started)
    split = ValidationSplit.of_fraction(validation_fraction, read_documents(patterns))
    units = _units(patterns, split, shard_bytes)
    finished: list[_Shard] = []
    with atomic_folder(out, overwrite=overwrite) as folder:
        for side in _SIDES:
            (folder / side).mkdir()
        write = partial(_write_unit, tokenizer_folder, folder)
        with closing(map_in_order(write, units, workers)) as shards:
            for shard in shards:
                finished.append(shard)
                if on_progress:
                    on_progress(_progress(finished, started))
        for side in _SIDES:
            entries = [shard.entry for shard in finished if shard.side == side]
            write_manifest(folder / side, entries, tokenizer.identity, build)
    return _summary(out, reused=False, started=started)


def _check(tokenizer: Tokenizer, tokenizer_folder: Path, shard_bytes: int, workers: int) -> None:
    if shard_bytes < 1 or workers < 1:
        raise DataError(f"shard_bytes={shard_bytes} and workers={workers} must both be at least 1")
    if "end_of_document" not in tokenizer.special_ids:
        raise DataError(
            f'{tokenizer_folder} has no end-of-document id; name one ("eos_token") in the tokenizer_config.json that '
            "it was imported from, and import it again"
        )
    if load_tokenizer(tokenizer_folder).identity != tokenizer.identity:
        raise DataError(f"{tokenizer_folder} holds another tokenizer than the one given; give the folder it came from")


def _reuse(out: Path, build: dict[str, Any], identity: TokenizerIdentity, started: float) -> BuildSummary:
    for side in _SIDES:
        manifest = ShardSet.open(out / side).manifest
        if manifest.build != build or manifest.tokenizer != identity:
            raise DataError(
                f"{out} holds shards built of other text, options or another tokenizer; "
                "remove it or choose another output folder"
            )
    return _summary(out, reused=True, started=started)


def _summary(out: Path, *, reused: bool, started: float) -> BuildSummary:
    train, validation = (_side_summary(out / side) for side in _SIDES)
    return BuildSummary(out, train, validation, reused, time.monotonic() - started)


def _side_summary(path: Path) -> SideSummary:
    manifest = Manifest.load(path)
    documents = sum(shard.documents for shard in manifest.shards)
    tokens = sum(shard.tokens for shard in manifest.shards)
    return SideSummary(path, len(manifest.shards), documents, tokens, manifest.fingerprint)


def _progress(finished: Sequence[_Shard], started: float) -> BuildProgress:
    return BuildProgress(
        shards=len(finished),
        documents=sum(shard.entry.documents for shard in finished),
        tokens=sum(shard.entry.tokens for shard in finished),
        text_bytes=sum(shard.text_bytes for shard in finished),
        seconds=time.monotonic() - started,
    )


def _units(patterns: Sequence[str], split: ValidationSplit, shard_bytes: int) -> Iterator[_Unit]:
    filling = {side: _Unit(side, 0, [], 0) for side in _SIDES}
    for document in read_documents(patterns):
        side: Side = "validation" if split.is_validation(document.text) else "train"
        unit = filling[side]
        unit.texts.append(document.text)
        unit = replace(unit, text_bytes=unit.text_bytes + len(document.text.encode()))
        if unit.text_bytes >= shard_bytes:
            yield unit
            unit = _Unit(side, unit.number + 1, [], 0)
        filling[side] = unit
    yield from (unit for unit in filling.values() if unit.texts)


def _write_unit(tokenizer_folder: Path, folder: Path, unit: _Unit) -> _Shard:
    tokenizer = load_tokenizer(tokenizer_folder)
    key = f"{unit.number:06d}"
    documents = (tokenize(text, tokenizer) for text in unit.texts)
    entry = write_shard(folder / unit.side / f"{key}.tar", key, documents, token_dtype(tokenizer.vocab_size))
    return _Shard(unit.side, entry, unit.text_bytes)


def tokenize(text: str, tokenizer: Tokenizer) -> TokenizedDocument:
    """Encode one document: its ids and the end-of-document id, with the tokens at which sentences and words begin."""
    ids, starts = tokenizer.encode_with_offsets(text)
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
