"""How long the documents of a set are and where they come from; reads no text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.describe import source_names
from data_pipeline.shards.reader import ShardSet

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class LengthBin:
    """Documents of `low` to `high` tokens, both included: how many they are and what they hold."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class SourceShare:
    """What one source file gave to the set."""

    name: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class SetStatistics:
    """Lengths and sources of the documents of one folder of shards.

    Attributes:
        folder: where it lies.
        documents: how many.
        tokens: how many; end-of-document ids count.
        shortest: tokens of the shortest document.
        longest: tokens of the longest.
        percentiles: p per cent of the documents have at most so many tokens, by p.
        lengths: documents by length, in powers of two, from the shortest to the longest.
        sources: in the order of the manifest, those that gave nothing included; empty if it lists none.
    """

    folder: str
    documents: int
    tokens: int
    shortest: int
    longest: int
    percentiles: dict[int, int]
    lengths: list[LengthBin]
    sources: list[SourceShare]


def statistics(directory: Path) -> SetStatistics:
    """Count the documents of a folder of shards by length and source.

    Goes shard by shard; memory grows with the number of different lengths and sources, not with the data.

    Raises:
        DataError: the manifest or a shard is missing or damaged.
    """
    shards = ShardSet.open(directory)
    names = source_names(shards.manifest.build)
    counts = _LengthCounts()
    documents, tokens = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for number in range(len(shards.manifest.shards)):
        lengths = np.diff(shards.document_offsets(number))
        origins = shards.origins(number)
        counts.add(lengths)
        documents = _added(documents, np.bincount(origins))
        # Sums of a shard stay far below 2^53, up to where 64-bit floats hold every whole number.
        tokens = _added(tokens, np.bincount(origins, weights=lengths).astype(np.int64))
    if not names:
        documents = tokens = np.empty(0, np.int64)
    names += [f"source {number}, not in the manifest" for number in range(len(names), documents.size)]
    return SetStatistics(
        folder=shards.location,
        documents=shards.num_documents,
        tokens=shards.num_tokens,
        shortest=int(counts.lengths[0]),
        longest=int(counts.lengths[-1]),
        percentiles={percent: counts.percentile(percent) for percent in PERCENTILES},
        lengths=counts.bins(),
        sources=[SourceShare(*row) for row in zip(names, documents.tolist(), tokens.tolist(), strict=True)],
    )


class _LengthCounts:
    """How many documents there are of each length.

    Attributes:
        lengths: those that occur, ascending, [n], int64.
        documents: of each length, [n], int64.
    """

    def __init__(self) -> None:
        self.lengths: NDArray[np.int64] = np.empty(0, np.int64)
        self.documents: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, lengths: NDArray[np.int64]) -> None:
        found, counts = np.unique(lengths, return_counts=True)
        merged = np.union1d(self.lengths, found)
        documents = np.zeros(merged.size, np.int64)
        documents[np.searchsorted(merged, self.lengths)] = self.documents
        documents[np.searchsorted(merged, found)] += counts
        self.lengths, self.documents = merged, documents

    def percentile(self, percent: int) -> int:
        """The smallest length that at least so many per cent of the documents do not exceed."""
        total = np.cumsum(self.documents)
        return int(self.lengths[np.searchsorted(100 * total, percent * total[-1])])

    def bins(self) -> list[LengthBin]:
        exponents = np.frexp(self.lengths)[1] - 1
        bins = []
        for exponent in range(int(exponents[0]), int(exponents[-1]) + 1):
            here = exponents == exponent
            documents = self.documents[here]
            tokens = int((documents * self.lengths[here]).sum())
            bins.append(LengthBin(1 << exponent, (2 << exponent) - 1, int(documents.sum()), tokens))
        return bins


def _added(sums: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two rows added from the left, as long as the longer."""
    result = np.zeros(max(sums.size, more.size), np.int64)
    result[: sums.size] += sums
    result[: more.size] += more
    return result
