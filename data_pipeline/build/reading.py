"""The documents of a chunk that are wanted: read, hashed, filtered and numbered the same way in every stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from data_pipeline.build.plan import Plan
from data_pipeline.filters import DocumentFilter
from data_pipeline.processes import Note
from data_pipeline.sources import Document

_NOTE_SECONDS = 0.5


@dataclass(frozen=True)
class Step:
    """A bit of work done in a chunk.

    Attributes:
        chunk: its number.
        documents: read in this step.
        text_bytes: of them, UTF-8.
        tokens: made in this step.
        finished: the chunk is done.
    """

    chunk: int
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    finished: bool = False


class StepNotes:
    """Adds up what is done in a chunk, and tells of it now and then."""

    def __init__(self, chunk: int, note: Note) -> None:
        self._chunk, self._note = chunk, note
        self._documents = self._text_bytes = self._tokens = 0
        self._next = time.monotonic() + _NOTE_SECONDS

    def add(self, *, documents: int = 0, text_bytes: int = 0, tokens: int = 0) -> None:
        """Count something done."""
        self._documents += documents
        self._text_bytes += text_bytes
        self._tokens += tokens
        if time.monotonic() >= self._next:
            self._tell(finished=False)

    def finish(self) -> None:
        """Tell the rest."""
        self._tell(finished=True)

    def _tell(self, *, finished: bool) -> None:
        self._note(Step(self._chunk, self._documents, self._text_bytes, self._tokens, finished))
        self._documents = self._text_bytes = self._tokens = 0
        self._next = time.monotonic() + _NOTE_SECONDS


class ChunkReader:
    """Reads a chunk.

    Attributes:
        documents: read so far.
        counts: documents that the filters left out or changed, by reason.
    """

    def __init__(self, plan: Plan, chunk: int) -> None:
        self._plan, self._chunk = plan, chunk
        self._filter = DocumentFilter(plan.request.options.filters)
        self._digest = xxhash.xxh3_128()
        self.documents = 0

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        """The documents that pass the filters, each with the number of its source."""
        for source, document in self._plan.documents(self._chunk):
            self.documents += 1
            self._hash(document)
            kept = self._filter.apply(document)
            if kept is not None:
                yield source, kept

    @property
    def counts(self) -> dict[str, int]:
        """Documents that the filters left out or changed so far, by reason."""
        return dict(self._filter.counts)

    @property
    def content(self) -> str:
        """Hash of all that was read so far, wherever it lay (xxh3-128, hexadecimal)."""
        return self._digest.hexdigest()

    def _hash(self, document: Document) -> None:
        text = document.text.encode()
        self._digest.update(len(text).to_bytes(8, "little"))
        self._digest.update(text)
        if document.info:
            self._digest.update(json.dumps(dict(document.info), sort_keys=True).encode())
