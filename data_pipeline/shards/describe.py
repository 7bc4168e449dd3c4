"""What a folder of shards is, told from its manifest alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards.format import TokenizerIdentity
from data_pipeline.shards.reader import ShardSet

SOURCES = "sources"
"""Where a manifest's `build` lists the files that the text came from."""


@dataclass(frozen=True)
class SetDescription:
    """One folder of shards.

    Attributes:
        folder: where it lies.
        format: version of the shard format.
        fingerprint: equal for equal data only.
        tokenizer: what made the tokens.
        token_dtype: stored type of the tokens.
        shards: how many files.
        documents: of all shards.
        sentences: of all shards; as many as documents if nobody looked for sentences.
        tokens: of all shards.
        bytes: of all shard files.
        sources: names of the files that the text came from; documents refer to them by number.
        build: the other settings of the build.
    """

    folder: str
    format: int
    fingerprint: str
    tokenizer: TokenizerIdentity
    token_dtype: str
    shards: int
    documents: int
    sentences: int
    tokens: int
    bytes: int
    sources: list[str]
    build: dict[str, Any]


def describe(directory: Path) -> SetDescription:
    """Say what a folder of shards is; of the shards, only the sizes are looked at.

    Raises:
        DataError: the manifest or a shard is missing or damaged.
    """
    shards = ShardSet.open(directory)
    manifest = shards.manifest
    return SetDescription(
        folder=shards.location,
        format=manifest.format,
        fingerprint=manifest.fingerprint,
        tokenizer=manifest.tokenizer,
        token_dtype="u16" if manifest.token_dtype.itemsize == 2 else "u32",
        shards=len(manifest.shards),
        documents=shards.num_documents,
        sentences=shards.num_sentences,
        tokens=shards.num_tokens,
        bytes=sum(shard.bytes for shard in manifest.shards),
        sources=source_names(manifest.build),
        build={name: value for name, value in manifest.build.items() if name != SOURCES},
    )


def source_names(build: dict[str, Any]) -> list[str]:
    """The names of the files that the text came from, in the order in which documents refer to them."""
    sources = build.get(SOURCES)
    if not isinstance(sources, list):
        return []
    return [str(source.get("name", "?") if isinstance(source, dict) else source) for source in sources]
