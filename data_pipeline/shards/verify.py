"""The full check of a data set: every byte that a reader may ever touch."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.shards import format as fmt
from data_pipeline.shards.files import LocalFiles
from data_pipeline.shards.manifest import Manifest, ShardEntry
from data_pipeline.shards.open_shard import OpenShard

_CHUNK = 1 << 24


def verify(directory: Path) -> list[str]:
    """Check sizes, hashes, archive structure, offsets and token ids of all shards of a folder.

    Returns: one sentence for each problem, naming file and member; empty when all is well.
    """
    try:
        manifest = Manifest.load(directory)
    except DataError as error:
        return [str(error)]
    problems = [
        f"{path} is not listed in the manifest; remove it or build the data again"
        for path in sorted(directory.glob("*.tar"))
        if path.name not in {shard.name for shard in manifest.shards}
    ]
    for shard in manifest.shards:
        problems.extend(_shard_problems(directory, shard, manifest))
    return problems


def _shard_problems(directory: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    try:
        shard = OpenShard(LocalFiles(directory).local_path(entry), entry, manifest.token_dtype)
    except DataError as error:
        yield str(error)
        return
    damaged = [problem for name in entry.sizes if name != fmt.HASHES for problem in shard.damage(name)]
    yield from damaged
    if damaged:
        return  # what follows would only repeat it in other words
    path = directory / entry.name
    yield from _archive_problems(path, entry)
    if not _are_offsets(shard.document_offsets(), entry.documents, entry.tokens):
        yield f"shard {path}: the document offsets are not those of {entry.documents} documents"
    if not _are_offsets(shard.sentence_offsets(), shard.sentence_offsets().size - 1, entry.tokens):
        yield f"shard {path}: the sentence offsets do not cover its {entry.tokens} tokens"
    highest = _highest(shard.tokens(0, shard.num_tokens))
    if highest >= manifest.tokenizer.vocab_size:
        yield f"shard {path}: token id {highest} in a vocabulary of {manifest.tokenizer.vocab_size}"


def _archive_problems(path: Path, entry: ShardEntry) -> Iterator[str]:
    """Whether programs that read the tar headers see the same members as those that read the manifest."""
    expected = {f"{entry.key}.{name}": (place.offset, place.size) for name, place in entry.members.items()}
    try:
        with tarfile.open(path, "r:") as archive:
            found = {member.name: (member.offset_data, member.size) for member in archive}
    except tarfile.TarError as error:
        yield f"shard {path} is no readable tar archive: {error}"
        return
    if found != expected:
        yield f"shard {path}: its tar headers list {found}, the manifest {expected}"


def _are_offsets(offsets: NDArray[np.integer], count: int, end: int) -> bool:
    """Whether `offsets` starts `count` pieces that are not empty and fill [0, end)."""
    if offsets.size != count + 1 or count < 1:
        return False
    return bool(offsets[0] == 0 and offsets[-1] == end and (np.diff(offsets) > 0).all())


def _highest(tokens: NDArray[np.unsignedinteger]) -> int:
    return max(int(tokens[begin : begin + _CHUNK].max()) for begin in range(0, tokens.size, _CHUNK))
