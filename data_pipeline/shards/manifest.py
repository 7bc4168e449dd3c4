"""`manifest.json`: which shards make up a data set, in which order, and how to know that they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError
from data_pipeline.shards import format as fmt

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class MemberEntry:
    """Where a member lies in its shard file, in bytes, and the XXH3 hash (64 bits, hexadecimal) of its data."""

    offset: int
    size: int
    xxh3: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Attributes:
        name: file name beside the manifest.
        key: what stands before the first dot of its member names.
        bytes: size of the file.
        documents: how many it holds.
        tokens: how many it holds.
        members: by name without the key, see :data:`data_pipeline.shards.format.MEMBERS`.
    """

    name: str
    key: str
    bytes: int
    documents: int
    tokens: int
    members: dict[str, MemberEntry]


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a folder of shards.

    Attributes:
        format: version of the shard format.
        fingerprint: SHA-256 over the hashes of all members in order: equal for equal data only.
        tokenizer: what made the tokens.
        shards: in the order in which their tokens follow each other.
        build: settings of the build, for people and for reuse; no meaning to readers.
    """

    format: int
    fingerprint: str
    tokenizer: fmt.TokenizerIdentity
    shards: list[ShardEntry]
    build: dict[str, Any]

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Stored type of the tokens."""
        return fmt.token_dtype(self.tokenizer.vocab_size)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read and check the manifest of a folder; the shards themselves are not touched.

        Raises:
            DataError: there is none, it is damaged, or another version of the format wrote it.
        """
        path = directory / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(
                f"no token shards in {directory}: {MANIFEST_NAME} is missing; make them with `ptm data build`"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}; copy or build the data again") from error
        return _parse(text, path)


def write_manifest(
    directory: Path, shards: Sequence[ShardEntry], tokenizer: fmt.TokenizerIdentity, build: dict[str, Any]
) -> Manifest:
    """Write the manifest of the shards in `directory`, whole or not at all, after all of them.

    Args:
        directory: the folder in which the shard files lie.
        shards: in the order in which their tokens shall follow each other; at least one.
        tokenizer: what made the tokens.
        build: settings to keep with the data, JSON values.

    Raises:
        DataError: the place cannot be written.
        ValueError: no shards, two of one name, or tokens stored in another type than the tokenizer asks for.
    """
    manifest = Manifest(fmt.FORMAT_VERSION, _fingerprint(shards), tokenizer, list(shards), build)
    problem = _inconsistency(manifest)
    if problem:
        raise ValueError(problem)
    with atomic_file(directory / MANIFEST_NAME) as stream:
        stream.write(json.dumps(asdict(manifest), indent=1, sort_keys=True).encode() + b"\n")
    return manifest


def _parse(text: str, path: Path) -> Manifest:
    advice = "copy or build the data again"
    try:
        version = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: not a manifest of token shards; {advice}") from None
    if version != fmt.FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this program reads {fmt.FORMAT_VERSION}; build the data again"
        )
    try:
        manifest = TypeAdapter(Manifest).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is damaged: {where}: {first['msg']}; {advice}") from None
    if manifest.fingerprint != _fingerprint(manifest.shards):
        raise DataError(f"{path} is damaged: the fingerprint does not belong to these shards; {advice}")
    problem = _inconsistency(manifest)
    if problem:
        raise DataError(f"{path} is damaged: {problem}; {advice}")
    return manifest


def _inconsistency(manifest: Manifest) -> str | None:
    """What in a manifest contradicts itself, or None."""
    if not 1 <= manifest.tokenizer.vocab_size <= 1 << 32:
        return f"a vocabulary of {manifest.tokenizer.vocab_size} ids"
    names = [shard.name for shard in manifest.shards]
    if not names or len(set(names)) != len(names):
        return f"{len(names)} shards of {len(set(names))} different names"
    for shard in manifest.shards:
        expected = {
            fmt.TOKENS: shard.tokens * manifest.token_dtype.itemsize,
            fmt.DOCUMENTS: (shard.documents + 1) * fmt.DOCUMENT_DTYPE.itemsize,
            fmt.WORD_STARTS: (shard.tokens + 7) // 8,
        }
        if set(shard.members) != set(fmt.MEMBERS):
            return f"{shard.name} has the members {sorted(shard.members)}"
        for name, size in expected.items():
            if shard.members[name].size != size:
                return f"{name} of {shard.name} has {shard.members[name].size} bytes instead of {size}"
        if any(not fmt.BLOCK <= m.offset <= shard.bytes - m.size or m.size < 0 for m in shard.members.values()):
            return f"a member of {shard.name} lies outside its {shard.bytes} bytes"
    return None


def _fingerprint(shards: Sequence[ShardEntry]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        for name in fmt.MEMBERS:
            if name in shard.members:
                digest.update(f"{shard.members[name].xxh3}\n".encode())
    return digest.hexdigest()
