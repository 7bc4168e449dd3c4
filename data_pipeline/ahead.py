"""Which shards a rank reads next: what a cache of remote shards fetches ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from data_pipeline.ramp import BatchSizes
from data_pipeline.store import Prefetcher, RemoteFiles
from data_pipeline.stream import SampleStream


class FetchAhead:
    """The threads that fetch the shards of a stream's remote sources before they are read.

    Args:
        stream: which sample each counter of the run reads.
        sizes: samples of each step over all ranks.
        dp_rank: this rank among those that read different data.
        dp_size: how many of them there are.
        stop_step: the step after the last.
    """

    def __init__(self, stream: SampleStream, sizes: BatchSizes, dp_rank: int, dp_size: int, stop_step: int) -> None:
        self._stream = stream
        self._sizes = sizes
        self._rank = dp_rank, dp_size
        self._stop_step = stop_step
        self._prefetchers: list[Prefetcher] = []

    @property
    def is_needed(self) -> bool:
        """Whether any source lies elsewhere."""
        return any(_remote_files(self._stream, number) for number in range(len(self._stream.sources)))

    @contextmanager
    def running(self) -> Iterator[FetchAhead]:
        """Stop the threads at the end."""
        with ExitStack() as stack:
            stack.callback(self._close)
            yield self

    def advance(self, step: int) -> None:
        """Say that the steps before `step` are done; the first call starts the threads.

        They start that late because processes that are forked beside a running thread may find its locks taken.
        """
        if not self._prefetchers and self.is_needed:
            self._prefetchers = [
                Prefetcher(files, self._future(number, step))
                for number in range(len(self._stream.sources))
                if (files := _remote_files(self._stream, number)) is not None
            ]
        for prefetcher in self._prefetchers:
            prefetcher.advance(step)

    def _future(self, number: int, step: int) -> Iterator[tuple[int, list[int]]]:
        """The shards of a source that each step from `step` on reads for this rank."""
        samples = self._stream.sources[number].samples
        for later in range(step, self._stop_step):
            picks = self._stream.picks(*self._sizes.counters(later, *self._rank))
            own = picks.sources == number
            shards = samples.shards_of(picks.indices[own], picks.epochs[own])
            yield later, np.unique([shard for row in shards for shard in row]).astype(int).tolist()

    def _close(self) -> None:
        for prefetcher in self._prefetchers:
            prefetcher.close()


def _remote_files(stream: SampleStream, number: int) -> RemoteFiles | None:
    shards = stream.sources[number].shards
    return shards.files if shards is not None and isinstance(shards.files, RemoteFiles) else None
