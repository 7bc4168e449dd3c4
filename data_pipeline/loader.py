"""Steps to torch batches for one data-parallel rank.

Which samples a step reads is arithmetic: the batch sizes (:mod:`data_pipeline.ramp`) say which counters of the
global order (:mod:`data_pipeline.order`) belong to step t, and rank r of n reads the r-th slice of them. Nothing
here has a state; a run goes on after any step, on any number of ranks and with any number of worker processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_pipeline.ahead import FetchAhead
from data_pipeline.batches import Parcel, StepBatch
from data_pipeline.errors import UserError
from data_pipeline.ramp import BatchSizes, slice_of
from data_pipeline.samples import SampleBatch, Samples
from data_pipeline.stream import BrokenSource, Picks, SampleStream

_MESSAGE_BYTES = 4 << 20

BrokenHandler = Callable[[BrokenSource | None], Collection[tuple[str, str]] | None]


def training_batches(
    stream: SampleStream,
    *,
    sizes: BatchSizes,
    start_step: int,
    stop_step: int,
    dp_rank: int,
    dp_size: int,
    num_workers: int = 0,
    prefetch_steps: int = 4,
    first_step: int = 0,
    pin_memory: bool = False,
    handle_broken: BrokenHandler | None = None,
) -> Iterator[StepBatch]:
    """The batches of steps [start_step, stop_step) of a stream, in order.

    A worker process builds whole steps, so the batches do not depend on `num_workers`. No global random
    stream (torch, numpy, python) of the calling process is touched.

    Args:
        stream: which sample each counter of the run reads.
        sizes: samples of each step over all ranks; step t reads `sizes.size(t)` counters from
            `sizes.first_sample(t)` on.
        start_step: first step, from 0; after a resume, the number of steps already done.
        stop_step: the step after the last.
        dp_rank: this rank among those that read different data.
        dp_size: how many of them there are.
        num_workers: processes that load; 0 loads in this one.
        prefetch_steps: steps that each worker prepares ahead.
        first_step: what step 0 of this order is called in the batches: the steps of the run before it.
        pin_memory: put batches where a CUDA device copies them from without waiting.
        handle_broken: called before every batch with the shard that this rank could not read for it, or None;
            returns all shards to read without from that step on, source and file name, if they are more than
            before, else None. With it the batch is made again. Every rank has to come to the same answer. None:
            such a shard is an error.

    Raises:
        DataError: a shard is missing or damaged; the same message whether a worker met it or this process.
        ValueError: numbers that make no sense together.
    """
    if first_step < 0 or not 0 <= start_step <= stop_step:
        raise ValueError(f"steps [{start_step}, {stop_step}) after {first_step}")
    slice_of(sizes.final, dp_rank, dp_size)
    together = _steps_together(stream, sizes, dp_size, prefetch_steps) if num_workers else 1
    steps = _Steps(stream, sizes, dp_rank, dp_size, first_step, stop_step, together)

    def load(step: int) -> Iterator[_Item]:
        if not num_workers:  # without processes torch's loader only costs time
            return map(steps.__getitem__, range(step, stop_step))
        return iter(
            DataLoader(
                steps,
                batch_size=None,
                sampler=range(step, stop_step, together),
                num_workers=num_workers,
                prefetch_factor=max(1, prefetch_steps // together),
                # Forked workers die with a killed rank; those of a fork server, Python 3.14's default, live on.
                multiprocessing_context="fork",
                worker_init_fn=_ignore_stop_signals,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # the loader draws worker seeds; without its own it would take torch's
            )
        )

    ahead = FetchAhead(stream, sizes, dp_rank, dp_size, stop_step)
    batches = _handled(load, stream, ahead, start_step, stop_step, handle_broken)
    return map(StepBatch.pin_memory, batches) if pin_memory and not num_workers else batches


def validation_batches(
    samples: Samples, *, batch_size: int, dp_rank: int, dp_size: int, limit: int | None = None
) -> Iterator[StepBatch]:
    """The first `limit` samples (all when None) in their fixed order, each exactly once over all ranks.

    Every rank gets the same number of batches, as collective operations in a model need; its share of the
    last, short one may have no rows.

    Args:
        samples: the validation set.
        batch_size: samples of a batch over all ranks.
        dp_rank: this rank among those that read different data.
        dp_size: how many of them there are.
        limit: samples to read at most.

    Raises:
        DataError: a shard is missing or damaged.
        ValueError: numbers that make no sense together.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size {batch_size} and limit {limit} must be positive")
    slice_of(batch_size, dp_rank, dp_size)
    count = len(samples) if limit is None else min(limit, len(samples))
    return _validation_batches(samples, count, batch_size, dp_rank, dp_size)


def _validation_batches(
    samples: Samples, count: int, batch_size: int, dp_rank: int, dp_size: int
) -> Iterator[StepBatch]:
    for step, first in enumerate(range(0, count, batch_size)):
        size = min(batch_size, count - first)
        begin, end = slice_of(size, dp_rank, dp_size)
        indices = np.arange(first + begin, first + end, dtype=np.int64)
        picks = Picks(np.zeros_like(indices), indices, np.zeros_like(indices))
        yield _step_batch(step, first + begin, size, picks, samples.batch(picks.indices, picks.epochs))


@dataclass(frozen=True)
class _Failure:
    """A user error met in a worker, carried as a result: torch would rewrite a raised one's message."""

    error: UserError


_Item = Sequence[StepBatch | _Failure] | Parcel
"""What one call of a loader process gives: some steps, of which a failure is the last."""


class _Steps(Dataset[_Item]):
    """Map-style data set whose item t is this rank's slice of step t, and of some steps behind it."""

    def __init__(
        self,
        stream: SampleStream,
        sizes: BatchSizes,
        dp_rank: int,
        dp_size: int,
        first_step: int,
        stop_step: int,
        together: int,
    ) -> None:
        self._stream = stream
        self._sizes = sizes
        self._rank = dp_rank, dp_size
        self._first_step = first_step
        self._stop_step = stop_step
        self._together = together

    def __getitem__(self, step: int) -> _Item:
        batches: list[StepBatch] = []
        for later in range(step, min(step + self._together, self._stop_step)):
            try:
                batches.append(self._read(later))
            except UserError as error:
                return [*batches, _Failure(error)]
        return batches if get_worker_info() is None else Parcel.of(batches)

    def _read(self, step: int) -> StepBatch:
        begin, end = self._sizes.counters(step, *self._rank)
        picks = self._stream.picks(begin, end)
        size = self._sizes.size(step)
        return _step_batch(self._first_step + step, begin, size, picks, self._stream.read(picks))


def _steps_together(stream: SampleStream, sizes: BatchSizes, dp_size: int, prefetch_steps: int) -> int:
    """Steps that a loader process sends in one message: a message costs as much as some hundred kilobytes."""
    step_bytes = 8 * stream.sequence_length * -(-sizes.final // dp_size)
    return max(1, min(prefetch_steps, _MESSAGE_BYTES // step_bytes))


def _step_batch(step: int, first_sample: int, size: int, picks: Picks, rows: SampleBatch) -> StepBatch:
    return StepBatch(
        step=step,
        first_sample=first_sample,
        global_batch_size=size,
        sample_ids=picks.indices,
        inputs=torch.from_numpy(rows.inputs),
        labels=torch.from_numpy(rows.labels),
        lengths=torch.from_numpy(rows.lengths),
        segments=torch.from_numpy(rows.segments),
        pair_labels=torch.from_numpy(rows.pair_labels),
        documents=None if rows.documents is None else torch.from_numpy(rows.documents),
        source_ids=picks.sources,
    )


def _ignore_stop_signals(worker: int) -> None:
    """Let this process's parent decide when a run ends.

    Ctrl-C and a batch system signal every process of a job; a worker that died of it would end the step in
    which its parent still has to write a checkpoint. Workers leave when the parent is done with them or dead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handled(
    load: Callable[[int], Iterator[_Item]],
    stream: SampleStream,
    ahead: FetchAhead,
    step: int,
    stop_step: int,
    handle_broken: BrokenHandler | None,
) -> Iterator[StepBatch]:
    """The batches that `load` gives from a step on; begun again at a step for which shards went into quarantine."""
    with ahead.running():
        while step < stop_step:
            for item in _single(load(step)):
                error = item.error if isinstance(item, _Failure) else None
                if error is not None and (handle_broken is None or not isinstance(error, BrokenSource)):
                    raise error
                if handle_broken is not None:
                    quarantined = handle_broken(error if isinstance(error, BrokenSource) else None)
                    if quarantined is not None:
                        stream.quarantine(quarantined)
                        break
                assert isinstance(item, StepBatch), "a broken shard that nobody puts into quarantine"
                step += 1
                ahead.advance(step)
                yield item


def _single(items: Iterator[_Item]) -> Iterator[StepBatch | _Failure]:
    for item in items:
        yield from item.unpacked() if isinstance(item, Parcel) else item
