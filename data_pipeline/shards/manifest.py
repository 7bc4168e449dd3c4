"""`manifest.json`: which shards make up a data set, in which order, and how to know that they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError
from data_pipeline.shards import format as fmt
from data_pipeline.shards.archive import layout
from data_pipeline.shards.blocks import HASH_DTYPE, blocks_of

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

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each member, in the order in which they lie in the file."""
        return {name: self.members[name].size for name in fmt.MEMBERS if name in self.members}


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a folder of shards.

    Attributes:
        format: version of the shard format.
        fingerprint: SHA-256 over the hashes of all members in order: equal for equal data only.
        tokenizer: what made the tokens.
        shards: in the order in which their tokens follow each other.
        build: settings of the build, for people and for reuse; no meaning to readers.
        checksum: SHA-256 of the manifest's text as it is with this field empty.
    """

    format: int
    fingerprint: str
    tokenizer: fmt.TokenizerIdentity
    shards: list[ShardEntry]
    build: dict[str, Any]
    checksum: str

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
        return cls.parse(manifest_text(directory), str(directory))

    @classmethod
    def parse(cls, text: str, location: str) -> Manifest:
        """Check the text of a manifest and take it apart.

        Args:
            text: content of the file.
            location: folder or URL that it came from, for messages.

        Raises:
            DataError: it is damaged, or another version of the format wrote it.
        """
        return _parse(text, f"{location.rstrip('/')}/{MANIFEST_NAME}")


def manifest_text(directory: Path) -> str:
    """The content of the manifest of a folder.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = directory / MANIFEST_NAME
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(
            f"no token shards in {directory}: {MANIFEST_NAME} is missing; make them with `ptm data build`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; copy or build the data again") from error


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
    unsigned = Manifest(fmt.FORMAT_VERSION, _fingerprint(shards), tokenizer, list(shards), build, "")
    problem = _inconsistency(unsigned)
    if problem:
        raise ValueError(problem)
    manifest = replace(unsigned, checksum=_checksum(_text(unsigned)))
    with atomic_file(directory / MANIFEST_NAME) as stream:
        stream.write(_text(manifest).encode())
    return manifest


def _text(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(text: str, path: str) -> Manifest:
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
    if manifest.checksum != _checksum(text.replace(f'"checksum": "{manifest.checksum}"', '"checksum": ""')):
        raise DataError(f"{path} is damaged: its text does not have the checksum that stands in it; {advice}")
    return manifest


def _inconsistency(manifest: Manifest) -> str | None:
    """What in a manifest contradicts itself, or None."""
    if not 1 <= manifest.tokenizer.vocab_size <= 1 << 32:
        return f"a vocabulary of {manifest.tokenizer.vocab_size} ids"
    names = [shard.name for shard in manifest.shards]
    if not names or len(set(names)) != len(names):
        return f"{len(names)} shards of {len(set(names))} different names"
    for shard in manifest.shards:
        problem = _shard_inconsistency(shard, manifest.token_dtype.itemsize)
        if problem:
            return problem
    return None


def _shard_inconsistency(shard: ShardEntry, token_bytes: int) -> str | None:
    """What in the entry of a shard contradicts itself, or None."""
    if not set(fmt.MEMBERS) - {fmt.INFO} <= set(shard.members) <= set(fmt.MEMBERS):
        return f"{shard.name} has the members {sorted(shard.members)}"
    sizes = shard.sizes
    expected = {
        fmt.TOKENS: shard.tokens * token_bytes,
        fmt.DOCUMENTS: (shard.documents + 1) * fmt.DOCUMENT_DTYPE.itemsize,
        fmt.WORD_STARTS: (shard.tokens + 7) // 8,
        fmt.ORIGINS: shard.documents * fmt.ORIGIN_DTYPE.itemsize,
        fmt.HASHES: HASH_DTYPE.itemsize * sum(blocks_of(size) for name, size in sizes.items() if name != fmt.HASHES),
    }
    for name, size in expected.items():
        if sizes[name] != size:
            return f"{name} of {shard.name} has {sizes[name]} bytes instead of {size}"
    if min(sizes.values()) < 0 or sizes[fmt.SENTENCES] % fmt.SENTENCE_DTYPE.itemsize:
        return f"the members of {shard.name} have the sizes {sizes}"
    place = layout(sizes)
    if place.bytes != shard.bytes or any(shard.members[name].offset != at for name, at in place.offsets.items()):
        return f"the members of {shard.name} do not lie where their sizes put them"
    return None


def _fingerprint(shards: Sequence[ShardEntry]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        for name in fmt.MEMBERS:
            if name in shard.members:
                digest.update(f"{shard.members[name].xxh3}\n".encode())
    return digest.hexdigest()
