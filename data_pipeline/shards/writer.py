"""Documents to one shard file, the same bytes for the same documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.atomic import atomic_file
from data_pipeline.shards import format as fmt
from data_pipeline.shards.archive import header, layout, padding
from data_pipeline.shards.blocks import HASH_DTYPE, BlockHasher
from data_pipeline.shards.manifest import MemberEntry, ShardEntry

_FIRST = np.zeros(1, dtype=np.int64)
_NO_INFO: list[Mapping[str, Any]] = [{}]


def write_shard(
    path: Path,
    key: str,
    documents: Iterable[fmt.TokenizedDocument | fmt.TokenizedDocuments],
    dtype: np.dtype[np.unsignedinteger],
) -> ShardEntry:
    """Write a shard; it appears under its name only when it is complete and on disk.

    The documents are held in memory in their stored form (2 or 4 bytes a token and 1 for word starts).

    Args:
        path: the file, ``NAME.tar``.
        key: what stands before the first dot of every member name; readers group members by it.
        documents: at least one; single or many at once.
        dtype: of the stored tokens, from :func:`token_dtype`.

    Returns: what the manifest says about the shard.

    Raises:
        DataError: the place cannot be written.
        ValueError: no document, a token that `dtype` cannot hold, too many tokens, or a key with a dot.
    """
    if not key or set(key) & set("./"):
        raise ValueError(f"shard key {key!r}: must not be empty nor hold a dot or a slash")
    if dtype not in (np.dtype("<u2"), np.dtype("<u4")):
        raise ValueError(f"tokens are stored as <u2 or <u4, not {dtype.str}")
    columns = _Columns(documents, dtype)
    contents = columns.members()
    members: dict[str, MemberEntry] = {}
    hashes: list[int] = []
    with atomic_file(path) as stream:
        for name, pieces in contents.items():
            members[name], blocks = _write_member(stream, f"{key}.{name}", pieces)
            hashes += blocks
        members[fmt.HASHES], _ = _write_member(stream, f"{key}.{fmt.HASHES}", [np.array(hashes, HASH_DTYPE)])
        size = layout({name: member.size for name, member in members.items()}).bytes
        stream.write(bytes(size - stream.tell()))
    return ShardEntry(path.name, key, size, columns.num_documents, columns.num_tokens, members)


class _Columns:
    """The documents of a shard, column by column."""

    def __init__(
        self,
        documents: Iterable[fmt.TokenizedDocument | fmt.TokenizedDocuments],
        dtype: np.dtype[np.unsignedinteger],
    ) -> None:
        self._dtype = dtype
        self._tokens: list[NDArray[np.unsignedinteger]] = []
        self._documents: list[NDArray[np.int64]] = []
        self._sentences: list[NDArray[np.int64]] = []
        self._word_starts: list[NDArray[np.bool_]] = []
        self._origins: list[NDArray[np.unsignedinteger]] = []
        self._infos: list[Mapping[str, Any]] = []
        self.num_tokens = 0
        for document in documents:
            self._add(document)
        self.num_documents = len(self._infos)
        if self.num_documents == 0:
            raise ValueError("a shard needs at least one document")
        if self.num_tokens > fmt.MAX_SHARD_TOKENS:
            raise ValueError(f"{self.num_tokens} tokens; a shard holds at most {fmt.MAX_SHARD_TOKENS}")

    def _add(self, found: fmt.TokenizedDocument | fmt.TokenizedDocuments) -> None:
        highest = np.iinfo(self._dtype).max
        if found.tokens.min() < 0 or found.tokens.max() > highest:
            raise ValueError(f"a token id outside [0, {highest}] cannot be stored as {self._dtype.str}")
        if isinstance(found, fmt.TokenizedDocuments):
            starts, infos = found.document_starts, _NO_INFO * found.document_starts.size
        else:
            starts, infos = _FIRST, [found.info or {}]
        self._tokens.append(found.tokens.astype(self._dtype, order="C"))
        self._documents.append(starts + self.num_tokens)
        self._sentences.append(found.sentence_starts.astype(np.int64) + self.num_tokens)
        self._word_starts.append(found.word_starts.astype(np.bool_))
        self._origins.append(np.full(starts.size, found.origin, fmt.ORIGIN_DTYPE))
        self._infos += infos
        self.num_tokens += found.tokens.size

    def members(self) -> dict[str, Sequence[NDArray[Any]]]:
        """Content of every member but the hashes, in order, as pieces to be written one after the other."""
        end = np.array([self.num_tokens])
        documents = np.concatenate([*self._documents, end]).astype(fmt.DOCUMENT_DTYPE)
        sentences = np.concatenate([*self._sentences, end]).astype(fmt.SENTENCE_DTYPE)
        word_starts = np.packbits(np.concatenate(self._word_starts), bitorder="little")
        meta = fmt.meta(self._dtype, self.num_tokens, self.num_documents, sentences.size - 1)
        contents: dict[str, Sequence[NDArray[Any]]] = {
            fmt.META: [np.frombuffer(meta, np.uint8)],
            fmt.TOKENS: self._tokens,
            fmt.DOCUMENTS: [documents],
            fmt.SENTENCES: [sentences],
            fmt.WORD_STARTS: [word_starts],
            fmt.ORIGINS: [np.concatenate(self._origins)],
        }
        if any(self._infos):
            contents[fmt.INFO] = [_json_line(info) for info in self._infos]
        return contents


def _json_line(info: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(dict(info), sort_keys=True).encode() + b"\n", np.uint8)


def _write_member(stream: BinaryIO, name: str, pieces: Sequence[NDArray[Any]]) -> tuple[MemberEntry, list[int]]:
    """Write a member behind its header: where it lies, and the hashes of its blocks."""
    buffers = [piece.data.cast("B") for piece in pieces]
    size = sum(buffer.nbytes for buffer in buffers)
    stream.write(header(name, size))
    offset = stream.tell()
    hasher = BlockHasher()
    for buffer in buffers:
        hasher.update(buffer)
        stream.write(buffer)
    stream.write(bytes(padding(size)))
    digest, blocks = hasher.finish()
    return MemberEntry(offset, size, digest), blocks
