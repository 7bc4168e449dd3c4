"""The samples that a run reads one after the other: several sources, mixed and each in its own order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.order import Mixture, Permutation, SampleOrder, derive_key
from data_pipeline.samples import SampleBatch, ShardSamples
from data_pipeline.samples.joined import merge_batches
from data_pipeline.shards import ShardSet
from data_pipeline.shards.errors import BrokenShard

ONLY_SOURCE = "train"
"""What a single source is called."""
_MAX_REPLACEMENTS = 1000


class BrokenSource(BrokenShard):
    """A shard of one source of a stream is damaged, missing or cannot be fetched.

    Attributes:
        source: name of the source.
    """

    def __init__(self, source: str, error: BrokenShard) -> None:
        super().__init__(error.shard, str(error))
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, BrokenShard(self.shard, str(self)))


@dataclass(frozen=True)
class StreamSource:
    """One data set of a stream.

    Attributes:
        name: tells the sources of a run apart.
        samples: what it is cut into.
        order: in which order they are read.
        seed: of the run; says which samples stand in for those of a quarantined shard.
        shards: what the samples are cut from; None if it can have no quarantine.
    """

    name: str
    samples: ShardSamples
    order: SampleOrder
    seed: int = 0
    shards: ShardSet | None = None

    def stand_in(self, index: int, epoch: int, attempt: int) -> int:
        """The sample to try in place of one that cannot be read, after so many attempts; 0: the sample itself."""
        if attempt == 0:
            return index
        # One permutation again and again could run in a circle of samples that cannot be read.
        key = derive_key(self.seed, self.name, epoch, "replacement", attempt)
        return int(Permutation(len(self.samples), key)(np.array([index]))[0])


@dataclass(frozen=True)
class Picks:
    """What counters read: [n] each, int64.

    Attributes:
        sources: number of the source.
        indices: sample of that source.
        epochs: pass over that source.
    """

    sources: NDArray[np.int64]
    indices: NDArray[np.int64]
    epochs: NDArray[np.int64]


class SampleStream:
    """Counter -> sample, with no state: any part of it is found without the rest.

    Args:
        sources: at least one; samples of one length.
        mixture: which source each counter reads; None with a single source.

    Raises:
        ValueError: no source, no mixture of so many, or samples of different lengths.
    """

    def __init__(self, sources: Sequence[StreamSource], mixture: Mixture | None = None) -> None:
        mixed = 1 if mixture is None else mixture.num_sources
        if len(sources) != mixed:
            raise ValueError(f"a mixture of {mixed} sources for {len(sources)}")
        if len({source.samples.sequence_length for source in sources}) != 1:
            raise ValueError("the sources of a stream have samples of one length")
        self.sources = tuple(sources)
        self.mixture = mixture
        self._quarantined: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def single(cls, samples: ShardSamples, order: SampleOrder) -> SampleStream:
        """The stream of one data set."""
        return cls([StreamSource(ONLY_SOURCE, samples, order)])

    @property
    def sequence_length(self) -> int:
        """Positions of every sample."""
        return self.sources[0].samples.sequence_length

    def picks(self, begin: int, end: int) -> Picks:
        """What the counters [begin, end) read.

        Raises:
            ValueError: not 0 <= begin <= end.
        """
        if self.mixture is None:
            indices, epochs = self.sources[0].order.picks(begin, end)
            return Picks(np.zeros(end - begin, dtype=np.int64), indices, epochs)
        numbers, turns = self.mixture.picks(begin, end)
        picks = Picks(numbers, np.empty_like(numbers), np.empty_like(numbers))
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            # The counters of one source are consecutive turns of it.
            first = int(turns[rows[0]])
            found = self.sources[number].order.picks(first, first + rows.size)
            picks.indices[rows], picks.epochs[rows] = found
        return picks

    def read(self, picks: Picks) -> SampleBatch:
        """The samples of `picks`, row by row.

        A sample of a quarantined shard is replaced by another one of its source: the first that can be read of a
        sequence that depends on the seed, the source, the epoch and the sample alone.

        Raises:
            BrokenSource: a shard is missing or damaged that is not in quarantine.
            DataError: too much lies in quarantine.
        """
        numbers = np.unique(picks.sources).tolist() or [0]
        rows = [np.flatnonzero(picks.sources == number) for number in numbers]
        batches = [
            self._read_source(self.sources[number], picks.indices[own], picks.epochs[own])
            for number, own in zip(numbers, rows, strict=True)
        ]
        return merge_batches(batches, rows)

    def quarantine(self, shards: Collection[tuple[str, str]]) -> None:
        """Read nothing more of some shards, given by source and file name; replaces what was said before."""
        self._quarantined = frozenset(shards)
        for source in self.sources:
            if source.shards is not None:
                source.shards.set_quarantined([shard for name, shard in self._quarantined if name == source.name])

    def _read_source(self, source: StreamSource, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> SampleBatch:
        try:
            return source.samples.batch(indices, epochs)
        except BrokenShard as error:
            if (source.name, error.shard) not in self._quarantined:
                raise BrokenSource(source.name, error) from error
        rows = zip(indices.tolist(), epochs.tolist(), strict=True)
        readable = [self._readable(source, index, epoch) for index, epoch in rows]
        return source.samples.batch(np.array(readable, dtype=np.int64), epochs)

    def _readable(self, source: StreamSource, index: int, epoch: int) -> int:
        """The sample, or the first of those that stand in for it, that lies in no quarantined shard."""
        for attempt in range(_MAX_REPLACEMENTS):
            found = source.stand_in(index, epoch, attempt)
            try:
                source.samples.batch(np.array([found]), np.array([epoch]))
            except BrokenShard as error:
                if (source.name, error.shard) not in self._quarantined:
                    raise BrokenSource(source.name, error) from error
            else:
                return found
        raise DataError(
            f"{source.name}: {_MAX_REPLACEMENTS} samples in a row lie in shards that cannot be read; repair the data"
        )
