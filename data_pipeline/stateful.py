"""A loader for other trainers, with the methods that torchdata's StatefulDataLoader has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.batches import StepBatch
from data_pipeline.loader import training_batches
from data_pipeline.ramp import BatchSizes
from data_pipeline.stream import SampleStream


class StatefulLoader:
    """The batches of a run, for one data-parallel rank; its state is the number of steps that were taken.

    The state of any rank fits every rank of any number of ranks, workers or micro-batches.

    Args:
        stream: which sample each counter of the run reads.
        sizes: samples of each step over all ranks.
        steps: of the whole run.
        dp_rank: this rank among those that read different data.
        dp_size: how many of them there are.
        num_workers: processes that load; 0 loads in this one.
        prefetch_steps: steps that each worker prepares ahead.
    """

    def __init__(
        self,
        stream: SampleStream,
        sizes: BatchSizes,
        steps: int,
        *,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_workers: int = 0,
        prefetch_steps: int = 4,
    ) -> None:
        self._stream = stream
        self._sizes = sizes
        self._steps = steps
        self._rank = dp_rank, dp_size
        self._workers = num_workers, prefetch_steps
        self._step = 0

    def __iter__(self) -> Iterator[StepBatch]:
        """The batches from where the state stands to the end of the run."""
        for batch in training_batches(
            self._stream,
            sizes=self._sizes,
            start_step=self._step,
            stop_step=self._steps,
            dp_rank=self._rank[0],
            dp_size=self._rank[1],
            num_workers=self._workers[0],
            prefetch_steps=self._workers[1],
        ):
            self._step = batch.step + 1
            yield batch

    def __len__(self) -> int:
        """Batches that are left."""
        return self._steps - self._step

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands: the steps whose batches were taken, and the samples in them."""
        return {"step": self._step, "samples": self._sizes.first_sample(self._step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where another loader stood, from the next ``iter()`` on.

        Raises:
            ValueError: a step outside the run, or samples that other batch sizes have read.
        """
        step, samples = state_dict["step"], state_dict["samples"]
        if not 0 <= step <= self._steps:
            raise ValueError(f"step {step} of a run of {self._steps}")
        if samples != self._sizes.first_sample(step):
            raise ValueError(
                f"{samples} samples in {step} steps; these batch sizes read {self._sizes.first_sample(step)}"
            )
        self._step = step
