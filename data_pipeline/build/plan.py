"""What a build will do, settled before it begins: which text, cut into which chunks, under which rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError
from data_pipeline.filters import DocumentFilter, FilterOptions
from data_pipeline.shards import TokenizerIdentity
from data_pipeline.sources import Document, Piece, SourceFile, SourceOptions, cut_sources, find_sources, read_piece
from data_pipeline.split import ValidationSplit

PLAN_NAME = "plan.json"
_RULES = 2
"""Version of the rules that turn text into shards; a change makes old shards other shards."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides the bytes of the shards beside the text and the tokenizer.

    Attributes:
        source: how documents are found in source files.
        filters: what is changed in documents, and which are left out.
        validation_fraction: share of the documents to hold out, by content; at least one is.
        shard_bytes: text (UTF-8 bytes) after which a shard is closed; also about how much a chunk reads.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    validation_fraction: float = 0.02
    shard_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise DataError(f"shard_bytes={self.shard_bytes} must be at least 1")
        if not 0 < self.validation_fraction < 1:
            raise DataError(
                f"validation_fraction={self.validation_fraction} must lie between 0 and 1, for example 0.02"
            )


@dataclass(frozen=True)
class Request:
    """What is asked for: two equal ones give the same bytes.

    Attributes:
        rules: version of the rules.
        tokenizer: which one.
        options: see there.
        sources: files of text, with the size and version they had.
    """

    rules: int
    tokenizer: TokenizerIdentity
    options: BuildOptions
    sources: list[SourceFile]

    @classmethod
    def of(cls, patterns: Sequence[str], tokenizer: TokenizerIdentity, options: BuildOptions) -> Request:
        """Look for the sources; nothing is read.

        Raises: DataError if a pattern names nothing that can be read.
        """
        return cls(_RULES, tokenizer, options, find_sources(patterns))

    def difference(self, other: Request) -> str | None:
        """In which way the other differs, wherever the files lie and whenever they were written; None if it does not.

        The same names and sizes may still hold other text: see :meth:`changed_file`.
        """
        if self.rules != other.rules:
            return f"rules of version {other.rules} instead of {self.rules}"
        if self.tokenizer != other.tokenizer:
            return "another tokenizer"
        ours, theirs = _flat(asdict(self.options)), _flat(asdict(other.options))
        for name, value in ours.items():
            if theirs[name] != value:
                return f"{name}={theirs[name]} instead of {value}"
        for mine, its in itertools.zip_longest(self.sources, other.sources):
            if mine is None or its is None or mine.name != its.name:
                return f"{len(other.sources)} files of text, of which {(its or mine).name} is not the same"
            if mine.bytes != its.bytes:
                return f"{mine.name} with {its.bytes:,} bytes instead of {mine.bytes:,}"
        return None

    def changed_file(self, other: Request) -> str | None:
        """The first source that is not, in the other, the same file in the same state; None if all are."""
        theirs = {source.place: source for source in other.sources}
        for mine in self.sources:
            its = theirs.get(mine.place)
            if its is None or (its.bytes, its.version) != (mine.bytes, mine.version):
                return mine.place
        return None


@dataclass(frozen=True)
class Plan:
    """A request, and what follows from it and the head of the text.

    Attributes:
        request: what is asked for.
        threshold: documents whose hash lies below it are for validation, see ``ValidationSplit``.
        chunks: the units of work: consecutive pieces of text whose documents make up shards of their own.
    """

    request: Request
    threshold: int
    chunks: list[list[Piece]]

    @classmethod
    def of(cls, request: Request) -> Plan:
        """Cut the text into chunks, and read on until there is a document for training and one for validation.

        Raises: DataError if the text cannot be read, or not be split.
        """
        options = request.options
        pieces = cut_sources(request.sources, options.source, options.shard_bytes)
        plan = cls(request, 0, list(_chunks(pieces, options.shard_bytes)))
        chosen = DocumentFilter(options.filters)
        documents = (chosen.apply(document) for at in range(len(plan.chunks)) for _, document in plan.documents(at))
        kept = (document for document in documents if document is not None)
        split = ValidationSplit.of_fraction(options.validation_fraction, kept)
        return cls(request, split.threshold, plan.chunks)

    def documents(self, chunk: int) -> Iterator[tuple[int, Document]]:
        """The documents of a chunk as they lie in the sources, each with the number of its source.

        Raises: DataError naming the place of what cannot be read.
        """
        for piece in self.chunks[chunk]:
            for document in read_piece(self.request.sources, piece, self.request.options.source):
                yield piece.source, document

    @property
    def weights(self) -> list[int]:
        """About how many stored bytes each chunk reads."""
        return [sum(piece.weight for piece in chunk) for chunk in self.chunks]

    def save(self, folder: Path) -> None:
        """Write ``plan.json``, whole or not at all; what stands behind ``?`` in URLs may be a key, and stays out."""
        sources = [replace(source, location=source.place) for source in self.request.sources]
        kept = replace(self, request=replace(self.request, sources=sources))
        with atomic_file(folder / PLAN_NAME) as stream:
            stream.write(TypeAdapter(Plan).dump_json(kept) + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what :meth:`save` wrote.

        Raises: DataError if it is missing, damaged or of another version.
        """
        path = folder / PLAN_NAME
        try:
            return TypeAdapter(Plan).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{folder} was not written by this version of `ptm data build`: {PLAN_NAME} is missing; "
                "remove it or choose another output folder"
            ) from None
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path} is damaged or of another version ({str(error).splitlines()[0]}); --overwrite starts anew"
            ) from error


def _chunks(pieces: Sequence[Piece], chunk_bytes: int) -> Iterator[list[Piece]]:
    chunk: list[Piece] = []
    weight = 0
    for piece in pieces:
        if chunk and weight + piece.weight > chunk_bytes:
            yield chunk
            chunk, weight = [], 0
        chunk.append(piece)
        weight += piece.weight
    if chunk:
        yield chunk


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    nested = {name: value for name, value in options.items() if isinstance(value, dict)}
    return {name: value for name, value in options.items() if name not in nested} | {
        name: value for part in nested.values() for name, value in part.items()
    }
