"""Where the texts of samples lie: arithmetic over the sentence starts of shards, with no look at the text.

A chunk is a run of whole sentences that fills the room of a sample as far as whole sentences do. The chunks of a
shard depend on that shard and the room alone. Only sentences that are too long are cut, before a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.samples.index_cache import Columns, cached_columns
from data_pipeline.shards import ShardSet, Structure

Positions = NDArray[np.int64]

_RULES = 1
"""Version of what follows: another one whenever the same text is cut into other chunks."""


@dataclass(frozen=True)
class DocumentChunks:
    """Chunks of at least two pieces, each within one document; 16 bytes a chunk.

    Attributes:
        begins: position of each chunk's first token in the shard set, ascending, [chunks], int64.
        lengths: tokens of each, [chunks], int32; none is an end-of-document id.
        documents: number of the document in which each lies, [chunks], uint32.
        left_out: documents of a single short sentence, of which no two parts can be made.
    """

    begins: Positions
    lengths: NDArray[np.int32]
    documents: NDArray[np.uint32]
    left_out: int

    def __len__(self) -> int:
        return self.begins.size

    def siblings(self, chunks: Positions) -> tuple[Positions, Positions]:
        """For each of these chunks, the chunks [first, last) of the document in which it lies."""
        # Keys of another type would make numpy convert all documents.
        keys = self.documents[chunks]
        return (
            np.searchsorted(self.documents, keys, side="left"),
            np.searchsorted(self.documents, keys, side="right"),
        )


def full_sentences(shards: ShardSet, room: int, cache: Path | None = None) -> Positions:
    """Contiguous chunks of at most `room` tokens that may run over document ends, but not over the end of a shard.

    Every token of the set lies in exactly one chunk; a sentence longer than the room is cut.

    Args:
        shards: the text.
        room: tokens of a chunk, at most.
        cache: folder that keeps the result; see :mod:`data_pipeline.samples.index_cache`.

    Returns: position of the first token of each chunk, then the number of tokens, [chunks + 1], int64.

    Raises:
        DataError: a shard is missing or damaged.

    Source: FULL-SENTENCES of RoBERTa (arXiv 1907.11692), section 4.2.
    """

    def parts() -> Iterator[Columns]:
        for structure in shards.structures():
            yield {"begins": structure.first_token + _full_sentences(structure, room)}
        yield {"begins": np.array([shards.num_tokens])}

    return cached_columns(cache, _about(shards, "full_sentences", room), parts)["begins"]


def document_chunks(shards: ShardSet, room: int, cache: Path | None = None) -> DocumentChunks:
    """Chunks of consecutive sentences of one document, of at most `room` tokens and at least two pieces.

    A piece is a sentence; one longer than half the room makes several, so that two always fit. The last chunk of a
    document begins one piece earlier when it would hold only one, and shares that piece with the chunk before.

    Args:
        shards: the text.
        room: tokens of a chunk, at most; at least 2.
        cache: folder that keeps the result; see :mod:`data_pipeline.samples.index_cache`.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def parts() -> Iterator[Columns]:
        first_document = 0
        for structure in shards.structures():
            part = _document_chunks(structure, room)
            yield {
                "begins": part.begins + structure.first_token,
                "lengths": part.lengths,
                "documents": part.documents + np.uint32(first_document),
                "left_out": np.array([part.left_out]),
            }
            first_document += structure.documents.size - 1

    columns = cached_columns(cache, _about(shards, "document_chunks", room), parts)
    return DocumentChunks(
        columns["begins"], columns["lengths"], columns["documents"], left_out=int(columns["left_out"].sum())
    )


def _about(shards: ShardSet, kind: str, room: int) -> dict[str, str | int]:
    return {"shards": shards.fingerprint, "kind": kind, "room": room, "rules": _RULES}


def _full_sentences(structure: Structure, room: int) -> Positions:
    """First token of each chunk of a shard, counted from the shard's first."""
    offsets = structure.sentences.astype(np.int64)
    begins, ends = _cut(offsets[:-1], offsets[1:], room, structure)
    following = np.searchsorted(ends, begins + room, side="right")
    return begins[_chain(following)]


def _document_chunks(structure: Structure, room: int) -> DocumentChunks:
    """The chunks of a shard; positions and documents count from the shard's first."""
    begins, ends = _cut(*_sentences_without_ends(structure), room // 2, structure)
    documents = np.searchsorted(structure.documents, begins, side="right") - 1
    document_end = np.searchsorted(documents, documents, side="right")
    following = np.minimum(np.searchsorted(ends, begins + room, side="right"), document_end)
    first = _chain(following)
    last = following[first]
    lonely = last - first == 1
    leads_document = np.diff(documents, prepend=-1)[first] > 0
    first = first - (lonely & ~leads_document)
    first, last = first[~(lonely & leads_document)], last[~(lonely & leads_document)]
    lengths = (ends[last - 1] - begins[first]).astype(np.int32)
    with_chunks = np.unique(documents[first]).size
    left_out = structure.documents.size - 1 - with_chunks
    return DocumentChunks(begins[first], lengths, documents[first].astype(np.uint32), left_out)


def _sentences_without_ends(structure: Structure) -> tuple[Positions, Positions]:
    """Begin and end of every sentence, without the end-of-document ids."""
    begins, ends = structure.sentences[:-1].astype(np.int64), structure.sentences[1:].astype(np.int64)
    ends[np.searchsorted(ends, structure.documents[1:])] -= 1
    text = begins < ends
    return begins[text], ends[text]


def _cut(begins: Positions, ends: Positions, limit: int, structure: Structure) -> tuple[Positions, Positions]:
    """The same pieces, with those of more than `limit` tokens cut: before a word, in a longer word anywhere."""
    long = ends - begins > limit
    if not long.any():
        return begins, ends
    cuts = []
    rest, rest_ends = begins[long], ends[long]
    while rest.size:
        rest = _last_word(rest, limit, structure)
        cuts.append(rest)
        long = rest_ends - rest > limit
        rest, rest_ends = rest[long], rest_ends[long]
    return np.sort(np.concatenate([begins, *cuts])), np.sort(np.concatenate([ends, *cuts]))


def _last_word(begins: Positions, limit: int, structure: Structure) -> Positions:
    """The last position up to begin + limit at which a word starts; begin + limit if none does."""
    found = begins + limit
    open_rows = np.arange(begins.size)
    for length in range(limit, 0, -1):
        positions = begins[open_rows] + length
        starts = structure.starts_word(positions)
        found[open_rows[starts]] = positions[starts]
        open_rows = open_rows[~starts]
        if not open_rows.size:
            break
    return found


def _chain(following: Positions) -> Positions:
    """0, following[0], following[following[0]] and so on, up to the end."""
    lookup = np.ascontiguousarray(following).data
    chain, place = [], 0
    while place < len(lookup):
        chain.append(place)
        place = lookup[place]
    return np.array(chain, dtype=np.int64)
