"""What lies in a finished folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards import Manifest


@dataclass(frozen=True)
class SideSummary:
    """One side of the split: where it lies, its shards, documents and tokens, and the fingerprint of its data."""

    path: Path
    shards: int
    documents: int
    tokens: int
    fingerprint: str

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> SideSummary:
        """Count what a manifest lists."""
        documents = sum(shard.documents for shard in manifest.shards)
        tokens = sum(shard.tokens for shard in manifest.shards)
        return cls(path, len(manifest.shards), documents, tokens, manifest.fingerprint)

    def __str__(self) -> str:
        return f"{self.documents:,} documents, {self.tokens:,} tokens, {self.shards} shards"


@dataclass(frozen=True)
class BuildSummary:
    """What lies in the output folder.

    Attributes:
        path: the output folder.
        train: what is trained on.
        validation: what is held out.
        documents_read: before anything was left out.
        counts: documents that were left out or changed, by reason.
        reused: the folder was there, made of the same input and options; nothing was built.
        seconds: the whole call took.
        stages: seconds of this call by stage.
    """

    path: Path
    train: SideSummary
    validation: SideSummary
    documents_read: int
    counts: dict[str, int]
    reused: bool
    seconds: float
    stages: dict[str, float]

    @classmethod
    def of(cls, out: Path, *, reused: bool, seconds: float, stages: dict[str, float]) -> BuildSummary:
        """Read the manifests of a finished folder.

        Raises: DataError if they are missing or damaged.
        """
        manifests = [Manifest.load(out / side) for side in ("train", "validation")]
        train, validation = (
            SideSummary.of(out / side, manifest)
            for side, manifest in zip(("train", "validation"), manifests, strict=True)
        )
        build: dict[str, Any] = manifests[0].build
        return cls(out, train, validation, build["documents_read"], build["counts"], reused, seconds, stages)

    def __str__(self) -> str:
        verb = "is there already, made of the same text and options" if self.reused else "built"
        lines = [f"{self.path} {verb} ({self.seconds:.1f} s)"]
        lines += [f"{name}: {side}" for name, side in (("train", self.train), ("validation", self.validation))]
        lines += [f"{reason.replace('_', ' ')}: {count:,} documents" for reason, count in sorted(self.counts.items())]
        return "\n  ".join(lines)
