"""Steps to torch batches for one data-parallel rank.

Which samples a step reads is arithmetic: the batch sizes (:mod:`data_pipeline.ramp`) say which counters of the
global order (:mod:`data_pipeline.order`) belong to step t, and rank r of n reads the r-th slice of them. Nothing
here has a state; a run goes on after any step, on any number of ranks and with any number of worker processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data_pipeline.errors import UserError
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import Sample, Samples


@dataclass(frozen=True)
class StepBatch:
    """This rank's slice of one global batch.

    Attributes:
        step: number of the step, from 0; of a validation batch, its number within the validation set.
        first_sample: counter, in the global order, of the slice's first sample.
        global_batch_size: samples of the batch over all ranks.
        sample_ids: which sample of the data set stands in each row, [local], int64.
        inputs: token ids, [local, S], int64.
        labels: token id to predict at each position, or ``IGNORE_INDEX``, [local, S], int64.
        lengths: positions of each row that are no padding, [local], int64.
        segments: 0 or 1, the text of a pair to which a position belongs, [local, S], int64; 0 without pairs.
        pair_labels: 0 or 1 for a pair, see ``samples.Sample``, or ``IGNORE_INDEX``, [local], int64.
    """

    step: int
    first_sample: int
    global_batch_size: int
    sample_ids: NDArray[np.int64]
    inputs: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    segments: torch.Tensor
    pair_labels: torch.Tensor


def slice_of(global_batch_size: int, dp_rank: int, dp_size: int) -> tuple[int, int]:
    """Rows [begin, end) of a global batch that rank `dp_rank` of `dp_size` reads.

    The slices follow each other in rank order, cover the batch, and differ in length by at most one;
    with more ranks than samples some are empty.

    Raises:
        ValueError: the rank is not one of `dp_size`, or the batch has a negative size.
    """
    if global_batch_size < 0:
        raise ValueError(f"a batch of {global_batch_size} samples")
    if not 0 <= dp_rank < dp_size:
        raise ValueError(f"dp_rank {dp_rank} is outside [0, {dp_size})")
    return global_batch_size * dp_rank // dp_size, global_batch_size * (dp_rank + 1) // dp_size


def training_batches(
    samples: Samples,
    order: SampleOrder,
    *,
    sizes: BatchSizes,
    start_step: int,
    stop_step: int,
    dp_rank: int,
    dp_size: int,
    num_workers: int = 0,
    prefetch_steps: int = 4,
    first_step: int = 0,
) -> Iterator[StepBatch]:
    """The batches of steps [start_step, stop_step) of this order, in order.

    A worker process builds whole steps, so the batches do not depend on `num_workers`. No global random
    stream (torch, numpy, python) of the calling process is touched.

    Args:
        samples: the data set.
        order: which sample each counter of the run reads.
        sizes: samples of each step over all ranks; step t reads `sizes.size(t)` counters from
            `sizes.first_sample(t)` on.
        start_step: first step, from 0; after a resume, the number of steps already done.
        stop_step: the step after the last.
        dp_rank: this rank among those that read different data.
        dp_size: how many of them there are.
        num_workers: processes that load; 0 loads in this one.
        prefetch_steps: steps that each worker prepares ahead.
        first_step: what step 0 of this order is called in the batches: the steps of the run before it.

    Raises:
        DataError: a shard is missing or damaged; the same message whether a worker met it or this process.
        ValueError: numbers that make no sense together.
    """
    if first_step < 0 or not 0 <= start_step <= stop_step:
        raise ValueError(f"steps [{start_step}, {stop_step}) after {first_step}")
    slice_of(sizes.final, dp_rank, dp_size)
    steps = _Steps(samples, order, sizes, dp_rank, dp_size, first_step)
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start_step, stop_step),
        num_workers=num_workers,
        prefetch_factor=prefetch_steps if num_workers else None,
        # Forked workers die with a killed rank; those of a fork server, Python 3.14's default, live on.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # the loader draws worker seeds; without its own it would take torch's
    )
    return _raise_failures(loader)


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
        rows = [samples.sample(index, 0) for index in indices.tolist()]
        yield _batch(step, first + begin, size, indices, rows, samples.sequence_length)


@dataclass(frozen=True)
class _Failure:
    """A user error met in a worker, carried as a result: torch would rewrite a raised one's message."""

    error: UserError


class _Steps(Dataset[StepBatch | _Failure]):
    """Map-style data set whose item t is this rank's slice of step t."""

    def __init__(
        self, samples: Samples, order: SampleOrder, sizes: BatchSizes, dp_rank: int, dp_size: int, first_step: int
    ) -> None:
        self._samples = samples
        self._order = order
        self._sizes = sizes
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._first_step = first_step

    def __getitem__(self, step: int) -> StepBatch | _Failure:
        first, size = self._sizes.first_sample(step), self._sizes.size(step)
        begin, end = (first + row for row in slice_of(size, self._dp_rank, self._dp_size))
        try:
            indices = self._order.samples(begin, end)
            rows = [
                self._samples.sample(index, self._order.epoch(counter))
                for counter, index in zip(range(begin, end), indices.tolist(), strict=True)
            ]
        except UserError as error:
            return _Failure(error)
        return _batch(self._first_step + step, begin, size, indices, rows, self._samples.sequence_length)


def _batch(
    step: int, first_sample: int, size: int, indices: NDArray[np.int64], rows: Sequence[Sample], length: int
) -> StepBatch:
    def stack(columns: list[NDArray[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(columns) if columns else np.empty((0, length), dtype=np.int64))

    return StepBatch(
        step,
        first_sample,
        size,
        indices,
        stack([row.inputs for row in rows]),
        stack([row.labels for row in rows]),
        torch.tensor([row.length for row in rows], dtype=torch.int64),
        stack([row.segments for row in rows]),
        torch.tensor([row.pair_label for row in rows], dtype=torch.int64),
    )


def _ignore_stop_signals(worker: int) -> None:
    """Let this process's parent decide when a run ends.

    Ctrl-C and a batch system signal every process of a job; a worker that died of it would end the step in
    which its parent still has to write a checkpoint. Workers leave when the parent is done with them or dead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _raise_failures(loader: DataLoader[StepBatch | _Failure]) -> Iterator[StepBatch]:
    for item in loader:
        if isinstance(item, _Failure):
            raise item.error
        yield item
